"""A finished run, read from its folder: settings, results, and the student as a plain network."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from nst import build
from nst.config import RunConfig, check_values
from nst.data.dataset import Dataset
from nst.export.trust import TARGET, check_targets
from nst.files import sha256_of
from nst.models.weights import load_weights
from nst.runs.folder import STUDENT, SUMMARY, read_json
from nst.runs.provenance import changed_sources, user_sources

log = logging.getLogger(__name__)

REBUILD = "model.json"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run."""

    folder: Path
    settings: RunConfig
    summary: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        data = self.settings.data
        return data["channels"], data["size"], data["size"]

    @property
    def about_data(self) -> dict[str, Any]:
        """What the summary tells of the data: fingerprint and names of the classes; empty in those of earlier versions."""
        return self.summary.get("data") or {}

    def check_classes(self, data: Dataset) -> None:
        """Raises ValueError if classes of the training have other numbers in `data`; of names that differ, logs the first.

        One data set may spell its classes in two ways, so a name that `data` does not have is no error.
        """
        trained, here = self.about_data.get("classes") or (), data.classes or ()
        differ = [(i, a, b) for i, (a, b) in enumerate(zip(trained, here, strict=False)) if a != b]
        for label, before, now in differ:
            if before in here or now in trained:
                raise ValueError(
                    f"{self.folder} was trained with class {label} {before!r}, in data.name={data.name} class {label} is {now!r}: give "
                    "images of the same classes, in the same order"
                )
        for label, before, now in differ[:1]:
            log.warning(
                "class %d is %r in data.name=%s, %r in the training of %s", label, now, data.name, before, self.folder
            )

    def classes(self, data: Dataset) -> list[str] | None:
        """The names of the classes in the training; those of `data` where the run has not kept them."""
        return self.about_data.get("classes") or (list(data.classes) if data.classes else None)

    def accuracy_on(self, data: Dataset, split: str) -> float | None:
        """Top-1 accuracy (percent) that the run itself measured on these images; None for others than its test images."""
        same = self.about_data.get("sha256") == data.fingerprint
        return self.summary["test"]["top1"] if same and split == "test" else None

    def changed_sources(self, model: nn.Module) -> list[str]:
        """The files of the user's own code that makes this network and has changed since the training."""
        return changed_sources(self.summary.get("sources") or {}, user_sources(model))

    def log_changed_sources(self, model: nn.Module) -> None:
        """Log a warning for each of `changed_sources`."""
        for file in self.changed_sources(model):
            log.warning("%s has changed since %s was trained", file, self.folder)

    def student(self) -> nn.Module:
        """The trained student in `eval()` mode on the CPU: no hooks, no projections, no teacher."""
        model = build.network("model", build.without_weights(self.settings.model), self.settings.seed)
        self.log_changed_sources(model)
        load_weights(model, self.folder / STUDENT)
        return model.eval()

    def teacher(self) -> nn.Module | None:
        """The teacher's network with fresh weights, to count and to time; None if the run had none."""
        node = self.settings.teacher.model
        return None if node is None else build.network("teacher.model", build.without_weights(node), 0).eval()


def finished_run(folder: str | Path, data_root: str | None = None, allow: Collection[str] = ()) -> FinishedRun:
    """Read a run's folder. Its losses, optimizer and trackers are read as plain values: nothing calls them.

    Args:
        folder: `outputs/<data>/<teacher>-<model>/<losses>/seed<k>-<hash>`.
        data_root: folder of the data, if it has moved.
        allow: networks and data sets outside this project that may be called, such as "mynet.SmallNet".

    Raises:
        ValueError: there is no such folder, its run is not finished, its summary or its student is damaged, or it names code that is
            not allowed.
    """
    folder = Path(folder)
    file = folder / SUMMARY
    if not file.is_file() or not (folder / STUDENT).is_file():
        missing = "no such folder" if not folder.is_dir() else f"no finished run ({file.name} or {STUDENT} is missing)"
        raise ValueError(f"run={folder}: {missing}; pass the folder that a run prints after 'written to'")
    summary = read_json(file)
    if missing := [key for key in _FIELDS if key not in summary]:
        raise ValueError(f"{file} is damaged: it has no {', '.join(missing)}")
    data = summary.get("data") or {}
    if not isinstance(summary["student"], dict) or not isinstance(data, dict) or not _are_names(data.get("classes")):
        raise ValueError(f"{file} is damaged: its student or its data.classes are not those of a run")
    settings = _settings(summary["config"], file, allow)
    check_sha256(folder / STUDENT, summary["student"].get("sha256"), file)
    if data_root is not None:
        settings.data = {**settings.data, "root": data_root}
    return FinishedRun(folder, settings, summary)


def _are_names(node: Any) -> bool:
    return node is None or (isinstance(node, list) and all(isinstance(name, str) for name in node))


_FIELDS = ("config", "test", "evaluated_on", "teacher", "student", "seconds", "commit", "versions", "hardware")


def _settings(config: Any, file: Path, allow: Collection[str]) -> RunConfig:
    """The settings of a run from its summary; what will be called is checked first."""
    stored = config if isinstance(config, Mapping) else {}
    teacher = stored.get("teacher")
    called = {"data": stored.get("data"), "model": stored.get("model")}
    if isinstance(teacher, Mapping) and teacher.get("model") is not None:
        called["teacher.model"] = teacher["model"]
    check_targets({f"config.{key}": node for key, node in called.items()}, file, allow)
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), stored))
    except OmegaConfBaseException as error:
        raise ValueError(f"{file}: its settings are not those of a run: {error}") from error
    assert isinstance(settings, RunConfig)
    check_values(settings)
    for key in ("channels", "size", "num_classes"):
        if not isinstance(settings.data.get(key), int):
            raise ValueError(f"{file}: config.data.{key} is {settings.data.get(key)!r}; a whole number is needed")
    for key, node in called.items():
        if key != "data" and not isinstance(dict(node or {}).get("name"), str):
            raise ValueError(f"{file}: config.{key} has no name")
    return settings


def load_student(folder: str | Path, allow: Collection[str] = ()) -> nn.Module:
    """Rebuild a network from `model.json` and `student.safetensors`, in `eval()` mode on the CPU.

    Args:
        allow: networks outside this project that may be called, such as "mynet.SmallNet"; its folder must be on Python's path.

    Raises:
        ValueError: a file is missing, damaged or of another network, or `model.json` names code that is not allowed.
    """
    file = Path(folder) / REBUILD
    if not file.is_file():
        raise ValueError(f"{file} does not exist; nst export writes it")
    recipe = read_json(file, "export the run again")
    arguments, weights = recipe.get("arguments"), recipe.get("weights")
    if not isinstance(arguments, dict) or not isinstance(weights, str) or Path(weights).name != weights:
        raise ValueError(f"{file} is damaged: `arguments` and `weights`, the name of a file beside it, are needed")
    node = {**arguments, TARGET: recipe.get("target")}
    check_targets({"target": node}, file, allow)
    check_sha256(file.with_name(weights), recipe.get("sha256"), file)
    model = build.network(str(file), node, seed=0)
    load_weights(model, file.with_name(weights))
    return model.eval()


def check_sha256(weights: Path, expected: str | None, named_in: Path) -> None:
    """Raises ValueError if a weights file is not the one that `named_in` describes."""
    if expected is not None and weights.is_file() and (found := sha256_of(weights)) != expected:
        raise ValueError(
            f"{weights} has SHA-256 {found}, {named_in} says {expected}: it was replaced or is damaged; restore it"
        )
