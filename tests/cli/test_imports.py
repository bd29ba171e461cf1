"""What commands import: nothing that they do not use, since a start costs seconds, or a torchvision for another torch cannot be."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

START = """
import sys
class Broken:  # as where torchvision was built for another torch
    def find_spec(self, name, *_):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Broken())
sys.argv = ["nst"]
from pathlib import Path
from nst.cli.main import main
main(["train", "dry_run=true"])
main(["train", "teacher=none", "loss=ce", "model=resnet8", "data.limit=40", "trainer.epochs=1"])
heavy = {"pandas", "matplotlib", "scipy", "sklearn", "datasets", "timm", "onnx", "onnxruntime"} & set(sys.modules)
assert not heavy, heavy
[folder] = Path().glob("outputs/digits/none-resnet8/ce/*")
main(["export", f"run={folder}", "formats=[safetensors]"])
"""
LIST = """
import sys
from nst.cli.main import main
main(["runs"])
heavy = {"torch", "matplotlib", "sklearn", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_start_and_the_list_of_runs_import_nothing_heavy_that_they_do_not_use(tmp_path: Path) -> None:
    """A dry run and training draw no figure by matplotlib and read no frame, digits need no torchvision; the list of runs needs no network."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for code in (START, LIST):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "1 run in outputs" in done.stdout
