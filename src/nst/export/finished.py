"""A finished run, read back from its folder: its settings, what came out, its student as a plain network."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import nn

from nst import build
from nst.config import RunConfig
from nst.models.weights import load_weights
from nst.runs.folder import STUDENT

REBUILD = "model.json"


@dataclass(frozen=True)
class FinishedRun:
    """What a finished run left."""

    folder: Path
    settings: RunConfig
    summary: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        data = self.settings.data
        return data["channels"], data["size"], data["size"]

    def student(self) -> nn.Module:
        """The trained student in `eval()` mode on the CPU: no hooks, no projections, no teacher."""
        model = build.network("model", without_download(self.settings.model), self.settings.seed)
        load_weights(model, self.folder / STUDENT)
        return model.eval()

    def teacher(self) -> nn.Module | None:
        """The teacher's network with fresh weights, to count and to time; None where the run had none."""
        node = self.settings.teacher.model
        return None if node is None else build.network("teacher.model", without_download(node), 0).eval()


def without_download(node: Mapping[str, Any]) -> dict[str, Any]:
    """The node of a network whose weights come from a file, so none need be fetched."""
    return {**node, "pretrained": False} if "pretrained" in node else {**node}


def finished_run(folder: str | Path, data_root: str | None = None) -> FinishedRun:
    """Read a run's folder.

    Args:
        folder: `outputs/<data>/<teacher>-<model>/<losses>/seed<k>-<hash>`.
        data_root: where the data lies now, if it moved.

    Raises:
        ValueError: there is no such folder, or its run is not finished.
    """
    folder = Path(folder)
    file = folder / "summary.json"
    if not file.is_file() or not (folder / STUDENT).is_file():
        missing = "no such folder" if not folder.is_dir() else f"no finished run ({file.name} or {STUDENT} is missing)"
        raise ValueError(f"run={folder}: {missing}; give the folder that a run names as 'written to'")
    summary = json.loads(file.read_text())
    merged = OmegaConf.merge(OmegaConf.structured(RunConfig), summary["config"])
    settings = build.settings(cast(DictConfig, merged))
    if data_root is not None:
        settings.data = {**settings.data, "root": data_root}
    return FinishedRun(folder, settings, summary)


def load_student(folder: str | Path) -> nn.Module:
    """Rebuild a network from `model.json` and `student.safetensors`, in `eval()` mode on the CPU.

    Calls what `model.json` names, so use it on folders you trust.

    Raises:
        ValueError: a file is missing or of another network, or the code that `model.json` names can't be imported.
    """
    file = Path(folder) / REBUILD
    if not file.is_file():
        raise ValueError(f"{file} does not exist; scripts/export.py writes it")
    recipe = json.loads(file.read_text())
    module, _, name = recipe["target"].rpartition(".")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{file}: {recipe['target']} can't be imported ({error}); is its folder on the path?"
        ) from error
    model: nn.Module = make(**recipe["arguments"])
    load_weights(model, Path(folder) / recipe["weights"])
    return model.eval()
