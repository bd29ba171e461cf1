"""The package as a library: light to import, Hydra untouched, every public name there and typed."""

import subprocess
import sys
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

import nst
import nst.losses

HEAVY = "pandas matplotlib tensorboard datasets sklearn timm scipy onnxruntime mlflow wandb IPython"
LOADED = f"""
import os, sys
os.environ.pop("OMP_WAIT_POLICY", None)
import nst
def none_of(*modules):
    assert not {{*modules}} & set(sys.modules), sorted({{*modules}} & set(sys.modules))
def status(*words):
    sys.argv = ["nst"]
    try:
        main(words)
    except SystemExit as end:
        return end.code
none_of("torch", "hydra", "omegaconf", "torchvision", *"{HEAVY}".split())
from nst.cli.main import main
assert status("train", "modle=resnet8") == 2
none_of("torch", *"{HEAVY}".split())
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"  # before torch is there: threads sleep while they wait
"""


def test_imports_are_lazy() -> None:
    """Nothing heavy after `import nst` and after an error; of commands that work see tests/cli/test_imports.py."""
    source = str(Path(nst.__file__).parents[1])
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r})\n{LOADED}"], check=True)


def test_public_names() -> None:
    """Each is documented, every loss is one, and to import them leaves Hydra to the program."""
    GlobalHydra.instance().clear()
    assert set(nst.__all__) <= set(dir(nst))
    assert (Path(nst.__file__).parent / "py.typed").is_file()
    for name in nst.__all__:
        assert getattr(nst, name).__doc__, name
    assert not GlobalHydra.instance().is_initialized()
    classes = {name: value for name, value in vars(nst.losses).items() if isinstance(value, type)}
    losses = {name for name, value in classes.items() if issubclass(value, nst.losses.TransferLoss)}
    assert "CRD" in losses
    assert losses <= set(nst.__all__)
