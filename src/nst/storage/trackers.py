"""Trackers: destinations of a run's scalars and pictures besides its metrics.jsonl.

A continued run repeats some steps, with the same results. Each step must appear once: TensorBoard's files are truncated to
the checkpoint, the other trackers skip steps that an earlier start has sent.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)

BOARD = "tensorboard"  # in the run's folder
EVENTS = "events.out.tfevents."  # prefix of TensorBoard's files


@dataclass(frozen=True)
class RunInfo:
    """The run that a tracker records."""

    folder: Path
    name: str  # unique below the outputs, the same in every start
    group: str  # data, networks and losses: runs that differ by seed or settings
    config: Mapping[str, Any]  # resolved


class Tracker:
    """A member of the group `tracker`; only rank 0 has one."""

    def start(self, run: RunInfo, logged_steps: Mapping[str, int], state: Mapping[str, Any] | None) -> None:
        """Open.

        Args:
            logged_steps: the last step of each kind that earlier starts have logged, after their last checkpoint too.
            state: the result of `state()` in the checkpoint that the run continues from; None in a new run.
        """

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Named values of one step, of the kind "train" or "eval"."""
        raise NotImplementedError

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """A picture `[3, H, W]` in 0…1."""

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; everything logged is on disk or sent when this returns."""
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


def flat(values: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Nested values by their joined names."""
    joined: dict[str, Any] = {}
    for name, value in values.items():
        inner = flat(value, separator) if isinstance(value, Mapping) else {"": value}
        joined |= {f"{name}{separator}{key}" if key else name: v for key, v in inner.items()}
    return joined


class TensorBoard(Tracker):
    """Event files in the run's folder."""

    def start(self, run: RunInfo, logged_steps: Mapping[str, int], state: Mapping[str, Any] | None) -> None:
        """Truncate the event files to the checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = run.folder / BOARD
        for file in self._files():
            cut(file, (state or {}).get("sizes", {}).get(file.name, 0))
        self._writer = SummaryWriter(str(self.folder))

    def _files(self) -> list[Path]:
        """The event files only: other files are the user's."""
        return [f for f in self.folder.glob(f"{EVENTS}*") if f.is_file() and not f.is_symlink()]

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        self._writer.add_image(name, picture, step)

    def state(self) -> dict[str, Any]:
        """The sizes of the event files, after syncing them to disk."""
        self._writer.flush()
        return {"sizes": {file.name: on_disk(file) for file in self._files()}}

    def close(self, finished: bool = True) -> None:
        self._writer.close()


class Remote(Tracker):
    """What trackers share that cannot delete logged values: steps that an earlier start has sent are skipped."""

    logged_steps: Mapping[str, int] = {}

    def __init__(self, package: str) -> None:
        """Raises ValueError where the package is missing."""
        if find_spec(package) is None:
            raise ValueError(f"{package} is not installed; it comes with an extra: pip install 'nst[{package}]'")

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if step > self.logged_steps.get(kind, -1):
            self.send(step, values)

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of one step."""
        raise NotImplementedError


class WandB(Remote):
    """Weights & Biases; `WANDB_MODE=offline` or `mode: offline` writes into the run's folder, for `wandb sync`."""

    def __init__(self, project: str = "nst", entity: str | None = None, mode: str | None = None) -> None:
        """See W&B's `init` for the arguments. Raises ValueError where the package is missing."""
        super().__init__("wandb")
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f"mode is {mode!r}; it must be null, online, offline or disabled")
        self.project, self.entity, self.mode = project, entity, mode

    def start(self, run: RunInfo, logged_steps: Mapping[str, int], state: Mapping[str, Any] | None) -> None:
        """Start the run, or resume it."""
        import wandb
        from wandb.errors import UsageError

        self.logged_steps = logged_steps
        identifier = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{run.group}-{run.name}")[-64:]
        try:
            self._run = wandb.init(
                project=self.project, entity=self.entity, mode=self.mode, id=identifier, name=run.name, group=run.group,  # type: ignore[arg-type]
                config=dict(run.config), dir=str(run.folder), resume="allow" if logged_steps else None,
            )  # fmt: skip
        except UsageError as error:  # such as no login
            raise ValueError(f"tracker.wandb: {error}. tracker.wandb.mode=offline needs no account") from error

    def send(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        import wandb

        if step >= (self._run.step or 0):  # the same picture twice does no harm
            self._run.log({name: wandb.Image(picture.permute(1, 2, 0).numpy())}, step=step)

    def close(self, finished: bool = True) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow(Remote):
    """MLflow, by default in a local folder; `uri` or `MLFLOW_TRACKING_URI` names a server."""

    def __init__(self, experiment: str = "nst", uri: str | None = None) -> None:
        """Raises ValueError where the package is missing."""
        super().__init__("mlflow")
        self.experiment, self.uri = experiment, uri

    def start(self, run: RunInfo, logged_steps: Mapping[str, int], state: Mapping[str, Any] | None) -> None:
        """Start the run, or find it by its name and resume it."""
        from mlflow import MlflowClient

        self.logged_steps = logged_steps
        self._client = MlflowClient(tracking_uri=self.uri or os.environ.get("MLFLOW_TRACKING_URI"))
        existing = self._client.get_experiment_by_name(self.experiment)
        experiment = existing.experiment_id if existing else self._client.create_experiment(self.experiment)
        full = f"{run.group}/{run.name}"
        matches = self._client.search_runs([experiment], f"tags.`nst.run` = '{full}'", max_results=1)
        if matches and logged_steps:
            self._id = matches[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"nst.run": full, "nst.group": run.group}
        self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        for key, value in flat(run.config, ".").items():
            self._client.log_param(self._id, key, str(value)[:500])
        self._client.log_dict(self._id, dict(run.config), "config.json")

    def send(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        file = f"{name.replace('/', '-')}-step{step:08d}.png"  # the same picture twice is the same file
        self._client.log_image(self._id, picture.permute(1, 2, 0).numpy(), file)

    def close(self, finished: bool = True) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
