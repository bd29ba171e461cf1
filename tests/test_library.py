"""The package as a library: light to import, Hydra untouched, every public name there and typed."""

import dataclasses
import importlib
import inspect
import subprocess
import sys
import typing
from os import PathLike
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

import nst
import nst.losses

HEAVY = [
    "pandas",
    "matplotlib",
    "tensorboard",
    "datasets",
    "sklearn",
    "timm",
    "scipy",
    "onnxruntime",
    "mlflow",
    "wandb",
    "IPython",
]
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
none_of("torch", "hydra", "omegaconf", "torchvision", *{HEAVY})
from nst.cli.main import main
assert status("train", "modle=resnet8") == 2
none_of("torch", *{HEAVY})
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"  # before torch is there: threads sleep while they wait
"""


def test_imports_are_lazy() -> None:
    """Nothing heavy after `import nst` and after an error; of commands that work see tests/cli/test_imports.py."""
    source = str(Path(nst.__file__).parents[1])
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r})\n{LOADED}"], check=True)


def test_public_names() -> None:
    """Each is documented, and to import it leaves Hydra to the program."""
    GlobalHydra.instance().clear()
    assert set(nst.__all__) <= set(dir(nst))
    assert (Path(nst.__file__).parent / "py.typed").is_file()
    for name in nst.__all__:
        assert getattr(nst, name).__doc__, name
    assert not GlobalHydra.instance().is_initialized()


def test_every_loss_is_public() -> None:
    classes = {name: value for name, value in vars(nst.losses).items() if isinstance(value, type)}
    losses = {name for name, value in classes.items() if issubclass(value, nst.losses.TransferLoss)}
    assert "CRD" in losses
    assert losses <= set(nst.__all__)


def parts(annotation: Any) -> list[Any]:
    """The types of a union, or of what a list holds."""
    if typing.get_origin(annotation) is PathLike or not typing.get_args(annotation):
        return [annotation]
    return [part for inner in typing.get_args(annotation) for part in parts(inner)]


def test_every_path_may_be_text() -> None:
    """Of public functions and constructors, by their annotations: what takes a Path takes `str | PathLike`."""
    taking: set[str] = set()
    for home in ("nst", "nst.export", "nst.export.inference", "nst.models", "nst.models.weights", "nst.teacher"):
        module = importlib.import_module(home)
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            public = getattr(module, name)
            if not (inspect.isroutine(public) or inspect.isclass(public)) or dataclasses.is_dataclass(public):
                continue
            if getattr(public, "__module__", "").startswith("nst") and (home == "nst" or public.__module__ == home):
                for parameter in inspect.signature(public).parameters.values():
                    kinds = parts(parameter.annotation)
                    if any("Path" in str(kind) for kind in kinds):
                        taking.add(name)
                        assert {str, PathLike[str]} <= set(kinds), f"{home}.{name}({parameter})"
    assert {"load_weights", "save_weights", "load_student", "classifier", "distil", "runs"} <= taking
