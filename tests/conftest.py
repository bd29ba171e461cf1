"""What all tests share: composing the real configs, shrunken."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)

ROOT = Path(__file__).parents[1]

Compose = Callable[..., DictConfig]


def pytest_configure() -> None:
    """One thread in each process, also in those that tests start: several of them share the cores. Arrow files go to a folder of
    the tests', not into the user's cache.
    """
    os.environ.setdefault("HF_HOME", str(Path(tempfile.gettempdir()) / "nst-tests-huggingface"))
    threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(threads))


@pytest.fixture
def compose(tmp_path: Path) -> Compose:
    """`compose("loss=kd", …)`: the real configuration with overrides; runs go to this test's own folder."""

    def make(*overrides: str, config_name: str = "config") -> DictConfig:
        own = [f"outputs={tmp_path}/outputs"] if config_name == "config" else []
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return hydra.compose(config_name, [*own, *overrides])

    return make


TINY = [
    "model=resnet8", "teacher=resnet8", "teacher.min_accuracy=0", "data.limit=40", "trainer.epochs=2", "trainer.batch_size=16",
    "trainer.log_every=2", "teacher.train.epochs=1", "teacher.train.batch_size=16",
]  # fmt: skip


@pytest.fixture
def tiny() -> list[str]:
    """Overrides that make any digits run take about a second: 40 images, two epochs, small networks."""
    return [*TINY]
