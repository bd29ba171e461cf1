"""Runs in processes of their own, with faults, and what is left of them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

ROOT = Path(__file__).parents[2]
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
    one = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **one, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


class Server:
    """See server.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("server.py"))],
            env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **question: Any) -> Any:
        """One line there, one line back."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@dataclass
class Child:
    """A process that runs `train.py`."""

    server: Server
    pid: int
    output: Path

    def wait(self, seconds: float = 180) -> int | None:
        """Its exit status; -signal when killed; None when it hung."""
        return self.server.ask(wait=self.pid, seconds=seconds)

    def send(self, signum: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, signum)

    @property
    def text(self) -> str:
        """All that it and its predecessors in this place have printed."""
        return self.output.read_text()


@dataclass
class Place:
    """A working folder with the runs of one command."""

    server: Server
    folder: Path
    args: list[str]
    env: dict[str, str] = field(default_factory=dict)

    def start(self, *fault: Any, args: list[str] | None = None, rank: int | None = None) -> Child:
        """The command, with a fault."""
        self.folder.mkdir(exist_ok=True)
        output = self.folder / f"output{'' if rank is None else rank}.txt"
        pid = self.server.ask(
            args=[*self.args, *(args or [])], env=self.env | ({} if rank is None else {"RANK": str(rank)}),
            folder=str(self.folder), output=str(output), fault=list(fault),
        )  # fmt: skip
        return Child(self.server, pid, output)

    def run(self, *fault: Any, args: list[str] | None = None) -> int | None:
        """The command, with a fault, to its end: the exit status."""
        return self.start(*fault, args=args).wait()

    def ranks(
        self, *fault: Any, world: int = 2, args: list[str] | None = None, seconds: float = 180
    ) -> list[int | None]:
        """The command on several ranks, which meet as torchrun lets them: the exit statuses."""
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun keeps it, not a rank
        self.env = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world),
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        }  # fmt: skip
        children = [self.start(*fault, args=args, rank=rank) for rank in range(world)]
        codes = [child.wait(seconds) for child in children]
        self.env = {}
        return codes

    def texts(self) -> str:
        """All that the ranks have printed."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("output*.txt")))

    def text(self, rank: int | None = None) -> str:
        """All that the starts in this place have printed."""
        return (self.folder / f"output{'' if rank is None else rank}.txt").read_text()

    @property
    def path(self) -> Path:
        """The folder of the run."""
        (config,) = self.folder.glob("outputs/digits/*/*/*/config.json")
        return config.parent


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One for all tests."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def teacher(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small teacher."""
    place = Place(server, tmp_path_factory.mktemp("teacher"), [*TINY, "loss=ce", "model=resnet14"])
    assert place.run() == 0, place.text()
    return place.path / "student.safetensors"


@pytest.fixture(scope="session")
def tiny(teacher: Path) -> list[str]:
    """Arguments of a small run with that teacher."""
    return [*TINY, "teacher=resnet14", f"teacher.weights={teacher}", "teacher.min_accuracy=0"]


@pytest.fixture(scope="session")
def make_place(server: Server, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Place]:
    """`make_place(*overrides)`: a new place for a small run."""
    return lambda *overrides: Place(server, tmp_path_factory.mktemp("place"), [*tiny, *overrides])
