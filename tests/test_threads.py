"""How many threads of a CPU a run takes."""

from types import SimpleNamespace

import pytest
import torch

from nst.dist import Dist
from nst.run import set_threads


@pytest.mark.parametrize(
    ("asked", "size", "variable", "threads"),
    [(None, 8, None, 1), (None, 32, None, 4), (None, 8, "4", 4), (3, 8, "4", 3)],
)
def test_the_key_wins_then_the_variable_then_the_images(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, size: int, variable: str | None, threads: int
) -> None:
    before, images = torch.get_num_threads(), SimpleNamespace(size=size)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(4)
    try:
        set_threads(asked, images, Dist(0, 1, torch.device("cpu")))  # pyright: ignore[reportArgumentType]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
