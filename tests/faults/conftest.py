"""Runs in processes of their own, with faults, and what is left of them."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tests.conftest import ROOT
from torch.distributed import TCPStore

TINY = [
    "trainer=quick", "data.limit=96", "trainer.batch_size=16", "trainer.epochs=2", "trainer.log_every=1",
    "trainer.eval_batch_size=100", "trainer.device=cpu", "model=resnet8", "optim.lr=0.01",
]  # fmt: skip
"""Two epochs of six steps."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")


def environment() -> dict[str, str]:
    """For a process that imports the package from this tree, on one thread, without the accelerator."""
    one = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **one, "PYTHONPATH": path}


@cache
def context() -> Any:
    """Forks processes from one that has imported everything."""
    os.environ |= environment()
    sys.path[:0] = [str(ROOT)]
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["tests.faults.injections"])
    return forking


@cache
def composed(args: tuple[str, ...]) -> DictConfig:
    """The configuration of a command line."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("config", overrides=list(args))


def status(process: BaseProcess, seconds: float = 180) -> int | None:
    """The exit status of a process, -signal when killed, None when it hung."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        return None
    return process.exitcode


class Place:
    """A working folder with the runs of one command."""

    def __init__(self, folder: Path, args: list[str]) -> None:
        self.folder, self.args = folder, args

    def start(self, *fault: Any, args: list[str] | None = None, **env: str) -> BaseProcess:
        """The command, with a fault."""
        from tests.faults.injections import main

        self.folder.mkdir(exist_ok=True)
        cfg, output = composed((*self.args, *(args or []))), f"output{env.get('RANK', '')}.txt"
        process = context().Process(target=main, args=(cfg, str(self.folder), output, env, fault))
        process.start()
        return process

    def run(self, *fault: Any, args: list[str] | None = None) -> int | None:
        """The command, with a fault, to its end: the exit status."""
        return status(self.start(*fault, args=args))

    def ranks(self, *fault: Any, args: list[str] | None = None) -> list[int | None]:
        """The command on two ranks, which meet as torchrun lets them: the exit statuses."""
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun keeps it, not a rank
        env = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2",
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        }  # fmt: skip
        processes = [self.start(*fault, args=args, **env, RANK=str(rank)) for rank in range(2)]
        return [status(process) for process in processes]

    def text(self, rank: int | None = None) -> str:
        """All that the starts in this place have printed, or those of one rank."""
        files = self.folder.glob("output*.txt" if rank is None else f"output{rank}.txt")
        return "".join(path.read_text() for path in sorted(files))

    @property
    def path(self) -> Path:
        """The folder of the run."""
        (config,) = self.folder.glob("outputs/digits/*/*/*/config.json")
        return config.parent

    def checkpoints(self) -> list[Path]:
        """Its checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("*.ckpt"))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small teacher."""
    place = Place(tmp_path_factory.mktemp("teacher"), [*TINY, "loss=ce", "model=resnet14"])
    assert place.run() == 0, place.text()
    return place.path / "student.safetensors"


@pytest.fixture(scope="session")
def tiny(teacher: Path) -> list[str]:
    """Arguments of a small run with that teacher."""
    return [*TINY, "teacher=resnet14", f"teacher.weights={teacher}", "teacher.min_accuracy=0"]


@pytest.fixture(scope="session")
def make_place(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Place]:
    """`make_place(*overrides)`: a new place for a small run."""
    return lambda *overrides: Place(tmp_path_factory.mktemp("place"), [*tiny, *overrides])
