"""The package as a library: light to import, Hydra untouched, every public name there and typed."""

import subprocess
import sys
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

import nst
import nst.losses

LIGHT = """
import sys, nst
heavy = {"torch", "hydra", "omegaconf", "torchvision"} & set(sys.modules)
assert not heavy, heavy
from hydra.core.global_hydra import GlobalHydra
for name in nst.__all__:
    getattr(nst, name)
assert not GlobalHydra.instance().is_initialized()
"""


def test_import_is_light_and_leaves_hydra_alone() -> None:
    source = str(Path(nst.__file__).parents[1])
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r})\n{LIGHT}"], check=True)
    assert not GlobalHydra.instance().is_initialized()


def test_public_names() -> None:
    assert nst.__all__ == sorted(nst.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert set(nst.__all__) <= set(dir(nst))
    assert (Path(nst.__file__).parent / "py.typed").is_file()
    for name in nst.__all__:
        assert getattr(nst, name).__doc__, name


def test_every_loss_is_public() -> None:
    classes = {name: value for name, value in vars(nst.losses).items() if isinstance(value, type)}
    losses = {name for name, value in classes.items() if issubclass(value, nst.losses.TransferLoss)}
    assert "CRD" in losses
    assert losses <= set(nst.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(nst, "registry")
