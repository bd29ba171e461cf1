"""A finished run of about a second, exported once for all tests of a session."""

from pathlib import Path
from typing import Any

import pytest
from shrunken import TINY, composed

from nst.cli.train import run
from nst.export import export


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: ResNet-14 → ResNet-8 on a few digits, KD + NST."""
    outputs = tmp_path_factory.mktemp("run") / "outputs"
    return Path(run(composed("config", *TINY, "loss=kd_nst_poly", f"outputs={outputs}"))["folder"])


@pytest.fixture(scope="session")
def exported(finished: Path) -> tuple[Path, dict[str, Any]]:
    """That run's export in every format that is installed, and what was measured."""
    report = export(composed("export", f"run={finished}", "repeats=5"))
    return finished / "export", report
