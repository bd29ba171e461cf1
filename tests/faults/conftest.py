"""Runs in processes of their own, with faults, and what is left of them."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tests.conftest import ROOT
from tests.outcome import outcome
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
    """Forks processes from one that has imported everything; a fork server that another test has started has not."""
    os.environ |= environment()
    sys.path[:0] = [str(ROOT)]
    forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["tests.faults.injections"])
    return forking


@cache
def composed(args: tuple[str, ...]) -> DictConfig:
    """The configuration of a command line."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("config", overrides=list(args))


def on_ranks(target: Callable[..., None], *args: Any, world: int = 2) -> list[int | None]:
    """`target(*args)` in forked processes, which may join as torchrun lets them: the exit statuses, None of one that hangs."""
    from tests.faults.injections import as_rank

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun keeps it, not a rank
    env = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    ranks = [env | {"RANK": str(rank)} if world > 1 else {} for rank in range(world)]
    processes = [context().Process(target=as_rank, args=(own, target, args)) for own in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


class Place:
    """A working folder with the run of one command."""

    def __init__(self, folder: Path, args: Sequence[str]) -> None:
        self.folder, self.args = folder, args

    def run(self, *fault: Any) -> int | None:
        """The command, with a fault, to its end: the exit status, -signal when killed, None when it hangs."""
        return self.ranks(*fault, world=1)[0]

    def ranks(self, *fault: Any, args: Sequence[str] = (), world: int = 2) -> list[int | None]:
        """The command on ranks that meet as torchrun lets them: the exit statuses."""
        from tests.faults.injections import main

        self.folder.mkdir(exist_ok=True)
        for path in self.folder.glob("output*.txt"):
            path.unlink()
        return on_ranks(main, composed((*self.args, *args)), str(self.folder), fault, world=world)

    def text(self, rank: int | str = "*") -> str:
        """All that the last start has printed, or one rank of it."""
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"output{rank}.txt")))

    @property
    def path(self) -> Path:
        """The folder of the run."""
        (config,) = self.folder.glob("outputs/digits/*/*/*/config.json")
        return config.parent

    def checkpoints(self) -> list[Path]:
        """Its checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("*.ckpt"))


@pytest.fixture(scope="session")
def make_place(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Place]:
    """`make_place(*overrides)`: a new place for a small run with a trained teacher."""
    of = Place(tmp_path_factory.mktemp("teacher"), [*TINY, "loss=ce", "model=resnet14"])
    assert of.run() == 0, of.text()
    teacher = ["teacher=resnet14", f"teacher.weights={of.path}/student.safetensors", "teacher.min_accuracy=0"]
    return lambda *overrides: Place(tmp_path_factory.mktemp("place"), [*TINY, *teacher, *overrides])


@pytest.fixture(scope="session")
def undisturbed(make_place: Callable[..., Place]) -> dict[str, Any]:
    """The outcome of a run left alone, which saves at the end of an epoch only."""
    place = make_place()
    assert place.run() == 0, place.text()
    return outcome(place.path)
