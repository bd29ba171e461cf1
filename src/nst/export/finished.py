"""Networks rebuilt from stored settings: the student of a finished run, and that of an export."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from nst import build
from nst.config import RunConfig, check_values
from nst.data.dataset import Dataset
from nst.files import sha256_of
from nst.models.weights import load_weights
from nst.storage.folder import BEST, STUDENT, SUMMARY, read_json

log = logging.getLogger(__name__)

MODEL = "model.json"  # in an export: how to rebuild the network, and what was measured
CALLABLE = ("nst.models", "nst.data", "torch.nn", "torchvision", "timm")  # what stored settings may call


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, with the weights of its last or of its best epoch."""

    folder: Path
    settings: RunConfig
    summary: dict[str, Any]
    weights: Path  # the student's file

    @property
    def test(self) -> dict[str, Any]:
        """Its accuracies on the test images."""
        return self.summary["test" if self.weights.name == STUDENT else "test_best"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        data = self.settings.data
        return data["channels"], data["size"], data["size"]

    def classes(self, data: Dataset | None = None) -> list[str] | None:
        """The names of the classes in the training, else those of `data`. Raises ValueError where one has another number in `data`."""
        trained, here = self.summary["data"].get("classes"), [] if data is None else list(data.classes or ())
        for label, (before, now) in enumerate(zip(trained or (), here, strict=False)):
            if before != now and (before in here or now in trained):
                raise ValueError(f"{self.folder}: its class {label} is {before!r}, here {now!r}; give its order")
        if trained and here and trained != here:
            log.warning("classes are spelled otherwise than in the training of %s: %s", self.folder, ", ".join(here))
        return trained or here or None

    def student(self) -> nn.Module:
        """The trained student in `eval()` mode on the CPU: no hooks, no projections, no teacher."""
        model = build.network("model", build.without_weights(self.settings.model), self.settings.seed)
        load_weights(model, self.weights)
        return model.eval()


def finished_run(folder: str | PathLike[str], data_root: str | None = None, weights: str = "last") -> FinishedRun:
    """Read a run's folder. Its losses, optimizer and trackers are read as plain values: nothing calls them.

    Args:
        folder: `outputs/<data>/<teacher>-<model>/<losses>/seed<k>-<hash>`.
        data_root: folder of the data, if it has moved.
        weights: "last" or "best": of the last epoch, or of the best one by the validation images, else by the test images.

    Raises:
        ValueError: there is no finished run, its summary or its student is damaged, or it names code that `check_code` refuses.
    """
    folder = Path(folder)
    file, student = folder / SUMMARY, folder / STUDENT
    if not file.is_file() or not student.is_file():
        reason = f"no finished run, {SUMMARY} or {STUDENT} is missing" if folder.is_dir() else "no such folder"
        raise ValueError(f"run={folder}: {reason}")
    summary = read_json(file)
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), summary["config"]))
        assert isinstance(settings, RunConfig)
        check_values(settings)
        for node in (settings.model, settings.teacher.model, settings.data):
            check_code(node, file)
        digest = summary["student"]["sha256"]
    except (OmegaConfBaseException, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: its settings are not those of a run of this version: {error}") from error
    _check_sha256(student, digest, file)
    if data_root is not None:
        settings.data = {**settings.data, "path" if "path" in settings.data else "root": data_root}
    chosen = {"last": student, "best": folder / BEST}.get(weights)
    if chosen is None or not chosen.is_file():
        both = "last, best" if (folder / BEST).is_file() else "last"
        raise ValueError(f"weights={weights}: {folder} has weights={both}")
    return FinishedRun(folder, settings, summary, chosen)


def check_code(node: Any, file: Path) -> None:
    """Check what plain settings stored in `file` would call, at any depth; each `_target_` is looked up, none is called.

    Raises:
        ValueError: a target that is not in `CALLABLE` nor of a module in the working folder, or an interpolation.
    """
    if isinstance(node, str) and "${" in node:
        raise ValueError(f"{file} has {node[:80]!r}, an interpolation; stored settings are plain values")
    for inner in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        check_code(inner, file)
    if not isinstance(node, Mapping) or "_target_" not in node:
        return
    target, here = str(node["_target_"]), Path.cwd()

    def known(name: str) -> bool:
        top = name.partition(".")[0]
        own = top.isidentifier() and ((here / f"{top}.py").is_file() or (here / top).is_dir())
        return own or any(f"{name}.".startswith(f"{home}.") for home in CALLABLE)

    try:  # looked up only below a known name; its own home counts, too, since a module of ours imports others
        found = get_object(target) if known(target) else None
    except (ImportError, ValueError) as error:
        raise ValueError(f"{file} names {target[:80]!r}, which cannot be imported: {error}") from error
    if not known(str(getattr(getattr(found, "func", found), "__module__", None))):  # of a partial, its function
        raise ValueError(f"{file} names {target[:80]!r}, not of nst, torch.nn, torchvision, timm or a module in {here}")


def load_student(folder: str | PathLike[str]) -> nn.Module:
    """Rebuild a network from `model.json` and `student.safetensors`, in `eval()` mode on the CPU.

    Raises:
        ValueError: a file is missing, damaged or of another network, or `model.json` names code that `check_code` refuses.
    """
    about, file = read_export(folder), Path(folder) / MODEL
    node = {**about["arguments"], "_target_": about["target"]}
    check_code(node, file)
    if about["weights"] is None:
        raise ValueError(f"{file}: the weights were not exported; formats=[safetensors] writes them")
    weights = file.with_name(Path(about["weights"]).name)
    _check_sha256(weights, about["sha256"], file)
    model = build.network(str(file), node, seed=0)
    load_weights(model, weights)
    return model.eval()


def read_export(folder: str | PathLike[str]) -> dict[str, Any]:
    """`model.json` of an export. Raises ValueError if it is missing or not one of this version."""
    file = Path(folder) / MODEL
    if not file.is_file():
        raise ValueError(f"{file} does not exist; nst export writes it")
    about = read_json(file, "export the run again")
    if missing := {"target", "arguments", "weights", "input", "output", "files"} - about.keys():
        raise ValueError(f"{file} is damaged: it has no {', '.join(sorted(missing))}; export the run again")
    return about


def _check_sha256(weights: Path, expected: str, named_in: Path) -> None:
    """Raises ValueError if a weights file is not the one that `named_in` describes."""
    if weights.is_file() and (found := sha256_of(weights)) != expected:
        raise ValueError(f"{weights} has SHA-256 {found}, {named_in} says {expected}: it was replaced or is damaged")
