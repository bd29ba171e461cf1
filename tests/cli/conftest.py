"""The command line as its user meets it."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import ROOT

from nst.cli.main import main


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its one message."""
        assert self.status == 1
        assert "Traceback" not in self.err
        return self.err[self.err.index("error: ") :]


Nst = Callable[..., Said]


@pytest.fixture
def nst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Nst:
    """`nst("train", "model=resnet8")` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}")

    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["nst"])
        capfd.readouterr()
        status = 0
        try:
            main(words)
        except SystemExit as end:
            status = int(end.code or 0)
        return Said(status, *capfd.readouterr())

    return run


def process(*words: str, folder: Path, code: str = "") -> Said:
    """A command in a process of its own; `code` runs there first."""
    call = f"import sys\nsys.argv = ['nst', *sys.argv[1:]]\n{code}\nfrom nst.cli.main import main\nmain()"
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", call, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return Said(done.returncode, done.stdout, done.stderr)
