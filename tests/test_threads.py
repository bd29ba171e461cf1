"""Threads of a CPU: how they wait, and how many there are."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from nst.dist import Dist
from nst.run import set_threads

ONE = Dist(0, 1, torch.device("cpu"))


@dataclass
class Images:
    """What is asked of a data set."""

    size: int


@pytest.fixture(autouse=True)
def four_threads():
    """Four threads before each test, as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "size", "variable", "threads"),
    [(None, 8, None, 1), (None, 32, None, 4), (None, 8, "4", 4), (3, 8, "4", 3), (2, 32, None, 2)],
)
def test_the_key_wins_then_the_variable_then_the_images(monkeypatch, asked, size, variable, threads) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    set_threads(asked, Images(size), ONE)  # pyright: ignore[reportArgumentType]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_sleep_while_they_wait_unless_told_otherwise(given: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | (
        {"OMP_WAIT_POLICY": given} if given else {}
    )
    code = "import os, sys; from nst.cli.main import main; main(['--version']); print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert output.stdout.split()[-2:] == [given or "PASSIVE", "False"]
