"""Beside a torchvision that cannot be imported: what needs none of it runs, the rest says what to install."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT

from nst import models

# As where torchvision was built for another torch.
BROKEN = """
import sys
class Broken:
    def find_spec(self, name, *_):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Broken())
"""


def test_digits_need_no_torchvision(tmp_path: Path) -> None:
    """To be trained and exported."""
    words = "teacher=none loss=ce model=resnet8 data.limit=40 trainer.epochs=1 trainer.heatmaps=false"
    commands = f"""
sys.argv = ["nst"]
from pathlib import Path
from nst.cli.main import main
main(["train", *{words.split()}])
[folder] = Path().glob("outputs/digits/none-resnet8/ce/*")
main(["export", f"run={{folder}}", "formats=[safetensors]"])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = [sys.executable, "-c", BROKEN + commands]
    done = subprocess.run(process, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_needs_torchvision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in ("nst.vision", "nst.data.augment"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    message = "cannot be imported beside torch .* together and from one place: pip install --force-reinstall torch torchvision"
    for model in (models.torchvision_model, models.timm_model):
        with pytest.raises(ValueError, match=message):
            model("resnet18", 10)
    with pytest.raises(ValueError, match=message):
        importlib.import_module("nst.data.augment")
