"""Trackers: destinations of a run's scalars besides its metrics.jsonl.

A continued run repeats steps, and each must appear once: a tracker truncates its log (`rewinds`), or gets only steps not sent yet.
"""

import logging
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nst.files import flat

log = logging.getLogger(__name__)


class Tracker:
    """A member of the group `tracker`; only rank 0 has one."""

    rewinds = False  # whether `start` removes what was logged after the checkpoint

    def start(self, folder: Path, config: Mapping[str, Any], resumed: bool, state: Mapping[str, Any] | None) -> None:
        """Open, for the run in this folder, whose last four names are unique below the outputs and the same in every start.

        Args:
            resumed: an earlier start has logged steps.
            state: that of the checkpoint that the run continues from.
        """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Named values of one step."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; everything logged is on disk, or was sent."""
        return {}

    def close(self, finished: bool = True) -> None:
        """The run ends, or this start of it: not `finished`."""


def cut(file: Path, size: int) -> None:
    """Truncate a log to the length in a checkpoint; 0: remove it."""
    length = file.stat().st_size if file.is_file() else 0
    if length < size:
        log.warning("%s has %d bytes, %d when the checkpoint was written: rows are lost", file, length, size)
    elif size:
        os.truncate(file, size)
    else:
        file.unlink(missing_ok=True)


def on_disk(file: Path) -> int:
    """Sync a file to disk and return its size."""
    with file.open("rb") as f:
        os.fsync(f.fileno())
    return file.stat().st_size


class TensorBoard(Tracker):
    """Event files in the run's folder."""

    rewinds = True

    def start(self, folder: Path, config: Mapping[str, Any], resumed: bool, state: Mapping[str, Any] | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder / "tensorboard"
        for file in self._files():
            cut(file, (state or {}).get("sizes", {}).get(file.name, 0))
        self._writer = SummaryWriter(str(self.folder))

    def _files(self) -> list[Path]:
        """The event files only: other files are the user's."""
        return [f for f in self.folder.glob("events.out.tfevents.*") if f.is_file() and not f.is_symlink()]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def state(self) -> dict[str, Any]:
        self._writer.flush()
        return {"sizes": {file.name: on_disk(file) for file in self._files()}}

    def close(self, finished: bool = True) -> None:
        self._writer.close()


def _group(folder: Path) -> str:
    """Data, networks and losses of a run: others in its group differ by seed or settings."""
    return "/".join(folder.parts[-4:-1])


class WandB(Tracker):
    """Weights & Biases; `WANDB_MODE=offline` or `mode: offline` writes into the run's folder, for `wandb sync`."""

    def __init__(self, project: str = "nst", entity: str | None = None, mode: str | None = None) -> None:
        """See W&B's `init` for the arguments. Raises ValueError where the package is missing."""
        if find_spec("wandb") is None:
            raise ValueError("wandb is not installed: pip install 'nst[wandb]'")
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f"mode is {mode!r}; it must be null, online, offline or disabled")
        self.about: dict[str, Any] = {"project": project, "entity": entity, "mode": mode}

    def start(self, folder: Path, config: Mapping[str, Any], resumed: bool, state: Mapping[str, Any] | None) -> None:
        import wandb
        from wandb.errors import UsageError

        about = self.about | {"name": folder.name, "group": _group(folder), "config": dict(config), "dir": str(folder)}
        about["id"] = re.sub(r"[^\w-]", "-", f"{_group(folder)}-{folder.name}")[-64:]
        try:
            self._run = wandb.init(**about, resume="allow" if resumed else None)
        except UsageError as error:  # such as no login
            raise ValueError(f"tracker.wandb: {error}. tracker.wandb.mode=offline needs no account") from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, finished: bool = True) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow(Tracker):
    """MLflow, by default in a local folder; `uri` or `MLFLOW_TRACKING_URI` names a server."""

    def __init__(self, experiment: str = "nst", uri: str | None = None) -> None:
        """Raises ValueError where the package is missing."""
        if find_spec("mlflow") is None:
            raise ValueError("mlflow is not installed: pip install 'nst[mlflow]'")
        self.experiment, self.uri = experiment, uri

    def start(self, folder: Path, config: Mapping[str, Any], resumed: bool, state: Mapping[str, Any] | None) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri or os.environ.get("MLFLOW_TRACKING_URI"))
        existing = self._client.get_experiment_by_name(self.experiment)
        experiment = existing.experiment_id if existing else self._client.create_experiment(self.experiment)
        full = f"{_group(folder)}/{folder.name}"
        matches = self._client.search_runs([experiment], f"tags.`nst.run` = '{full}'", max_results=1)
        if matches and resumed:
            self._id = matches[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"nst.run": full, "nst.group": _group(folder)}
        self._id = self._client.create_run(experiment, run_name=folder.name, tags=tags).info.run_id
        for key, value in flat(config).items():
            self._client.log_param(self._id, key, str(value)[:500])
        self._client.log_dict(self._id, dict(config), "config.json")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self, finished: bool = True) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
