"""The command line as its user meets it."""

import os
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
        assert self.status in (1, 2)
        assert "Traceback" not in self.err
        return self.err[self.err.index("error: ") :]


Nst = Callable[..., Said]


@pytest.fixture
def nst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Nst:
    """`nst("train", "model=resnet8")` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

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
