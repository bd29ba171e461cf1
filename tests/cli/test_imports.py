"""What commands import: nothing that they do not use, since a start costs seconds."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

START = """
import sys
sys.argv = ["nst"]
from nst.cli.main import main
main(["train", "dry_run=true"])
main(["train", "teacher=none", "loss=ce", "data.limit=40", "trainer.epochs=1", "trainer.heatmaps=true"])
heavy = {"pandas", "matplotlib", "scipy", "sklearn", "datasets", "timm", "onnx", "onnxruntime"} & set(sys.modules)
assert not heavy, heavy
"""
LIST = """
import sys
from nst.cli.main import main
main(["runs"])
heavy = {"torch", "matplotlib", "sklearn", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_start_and_the_list_of_runs_import_nothing_heavy_that_they_do_not_use(tmp_path: Path) -> None:
    """A dry run and training draw no figure by matplotlib and read no frame; the list of runs needs no network."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for code in (START, LIST):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "1 run in outputs" in done.stdout
