"""The record of a run: metrics, trackers, progress bar and checkpoints, in the run's folder. Only rank 0 writes."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from nst.config import differences
from nst.files import naming, write_whole
from nst.runs.checkpoint import Checkpoints, check_fields, read_checkpoint
from nst.runs.folder import DIVERGED, METRICS
from nst.runs.provenance import changed_sources
from nst.runs.trackers import RunInfo, Tracker
from nst.training.trainer import Trainer

log = logging.getLogger(__name__)

Draw = Callable[[], dict[str, Tensor]]  # named pictures [3, H, W] in 0…1


class RunRecord:
    """Writes a run's logs and checkpoints; in a continued run each step appears once. See `training.loop.Record`."""

    def __init__(
        self,
        trainer: Trainer,
        info: RunInfo,
        trackers: Mapping[str, Tracker] | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        sources: Mapping[str, str] | None = None,
        draw: Draw | None = None,
        show: bool = True,
    ) -> None:
        """Continue from the newest checkpoint, if there is one, and open the logs.

        Args:
            about: plain values that must be equal in every start of the run; saved in its checkpoints.
            sources: the user's own code that the run uses, see `user_sources`; logged where it has changed since the checkpoint.
            draw: makes pictures, before the first step and after the last.
            show: print progress.

        Raises:
            ValueError: every checkpoint is damaged, or they are of another run (the fields are named).
        """
        self.settings, self.ranks, self.folder = trainer.settings, trainer.ranks, info.folder
        self.about = {**(about or {}), "ranks": self.ranks.world}
        self.draw, self.show = draw, show
        self.checkpoints = Checkpoints(self.folder, self.settings.keep_checkpoints)
        self.sources = dict(sources or {})
        state = self._newest()
        if state is not None:
            self._load(trainer, state)
        self.last: dict[str, Any] | None = None if state is None else state["last"]
        self.trackers = dict(trackers or {}) if self.ranks.main else {}
        # of trackers that this start does not use, too: a later start may
        self.tracker_states: dict[str, Any] = {} if state is None else dict(state["logs"]["trackers"])
        if self.ranks.main:
            self._open(trainer, info, None if state is None else state["logs"])

    def _newest(self) -> dict[str, Any] | None:
        """The newest intact checkpoint: rank 0 finds it, all ranks read the same file."""
        newest = self.checkpoints.latest() if self.ranks.main else None
        if newest is not None:
            path, state = newest
            check_fields(path, state)
            if changed := differences(state["about"], self.about):
                raise ValueError(f"checkpoint {path} is of another run: {'; '.join(changed)}")
            if changed := differences(state["environment"], environment(self.ranks.device)):
                log.warning("results may differ in the last bits from here on: %s", "; ".join(changed))
            for file in changed_sources(state.get("sources", {}), self.sources):
                log.warning(
                    "%s has changed since %s was written; the run continues with the present source", file, path.name
                )
        if self.ranks.world == 1:
            return newest[1] if newest else None
        names = [str(newest[0]) if newest else None]
        dist.broadcast_object_list(names, 0)
        if names[0] is None:
            return None
        return newest[1] if newest else read_checkpoint(Path(names[0]))

    def _load(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Raises ValueError for a checkpoint that does not fit the run's networks, optimizer or logs."""
        try:
            trainer.load_state(state)
            if trainer.progress.step > trainer.steps:
                raise ValueError(f"it is of step {trainer.progress.step}, the run has {trainer.steps}")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"the newest checkpoint in {self.checkpoints.folder} does not fit this run: {reason}; delete it to use the one "
                f"before it, or {self.folder} to start over"
            ) from error

    def _open(self, trainer: Trainer, info: RunInfo, logs: Mapping[str, Any] | None) -> None:
        step, steps = trainer.progress.step, trainer.steps
        (self.folder / DIVERGED).unlink(missing_ok=True)
        logged_steps = last_steps(self.folder / METRICS)
        _cut(self.folder / METRICS, 0 if logs is None else logs["metrics"])
        self._lines = (self.folder / METRICS).open("ab", buffering=0)
        for name, tracker in self.trackers.items():
            tracker.start(info, logged_steps, self.tracker_states.get(name))
        self._bar = tqdm(
            total=steps, initial=step, unit="step", disable=None if self.show else True, dynamic_ncols=True
        )
        self._bar.set_postfix_str(f"epoch {step / trainer.loader.steps:.1f}/{self.settings.epochs}", refresh=False)
        self.print(batch_line(trainer))
        if logs is not None:
            self.print(f"continuing after step {step} of {steps}")

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One event: numbers to every tracker as `kind/name`, then a line `{"kind", "step", **values}` of metrics.jsonl."""
        if not self.ranks.main:
            return
        for tracker in self.trackers.values():
            tracker.scalars(kind, step, flat(values, kind))
        line = json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n"
        with naming(self.folder / METRICS):
            while line:
                line = line[self._lines.write(line) :]

    def draw_heatmaps(self, step: int) -> None:
        """Send heat maps to the trackers, if there are any."""
        if self.trackers and self.draw is not None:
            for name, grid in self.draw().items():
                for tracker in self.trackers.values():
                    tracker.image(name, grid, step)

    def advance(self, text: str = "") -> None:
        """One step done; see `training.loop.Record`."""
        if self.ranks.main:
            if text:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()

    def print(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.ranks.main and self.show:
            self._bar.write(text)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint with the lengths of the logs, which are synced to disk first."""
        if not self.ranks.main:
            return
        self.tracker_states |= {name: tracker.state() for name, tracker in self.trackers.items()}
        logs = {"metrics": _on_disk(self.folder / METRICS), "trackers": self.tracker_states}
        extra = {
            "logs": logs,
            "about": self.about,
            "environment": environment(self.ranks.device),
            "sources": self.sources,
        }
        self.checkpoints.save(step, state | extra)

    def diverged(self, step: int, error: FloatingPointError) -> FloatingPointError:
        """Write `diverged.json`; return the error with the last good checkpoint and a remedy."""
        if self.ranks.main:
            write_whole(self.folder / DIVERGED, json.dumps({"step": step, "reason": str(error)}).encode())
        hint = "trainer.clip_grad_norm=2 or a lower optim.lr may prevent it"
        return FloatingPointError(f"{error}; {self.checkpoints.last_good()}; {hint}")

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Flush and close everything; an error here does not hide an earlier one."""
        if not self.ranks.main:
            return
        with nullcontext() if kind is None else suppress(Exception):
            self._bar.close()
            self._lines.close()
            for tracker in self.trackers.values():
                tracker.close(finished=kind is None)


def flat(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The numbers in nested values, as `prefix/name/inner`."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}/{name}")
        elif isinstance(value, int | float):
            numbers[f"{prefix}/{name}"] = value
    return numbers


def last_steps(metrics: Path) -> dict[str, int]:
    """The last step of each kind that metrics.jsonl holds, whole lines only."""
    steps: dict[str, int] = {}
    if metrics.is_file():
        for line in metrics.read_bytes().splitlines(keepends=True):
            with suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                steps[str(event["kind"])] = int(event["step"])
    return steps


def _cut(file: Path, size: int) -> None:
    """Truncate a log to the length in a checkpoint; 0: remove it."""
    length = file.stat().st_size if file.is_file() else 0
    if length < size:
        log.warning("%s has %d bytes, %d when the checkpoint was written: rows are lost", file, length, size)
    elif size:
        os.truncate(file, size)
    else:
        file.unlink(missing_ok=True)


def _on_disk(file: Path) -> int:
    """Sync a file to disk and return its size."""
    with file.open("rb") as f:
        os.fsync(f.fileno())
    return file.stat().st_size


def batch_line(trainer: Trainer) -> str:
    """The global and per-rank batch size and learning rate."""
    batch, world = trainer.loader.batch_size, trainer.ranks.world
    lr, steps = trainer.optimizer.param_groups[0]["initial_lr"], trainer.settings.accumulate
    accumulation = f", in {steps} gradient accumulation steps of {batch / world / steps:g}" if steps > 1 else ""
    if world == 1:
        return f"batch size {batch}{accumulation}; learning rate {lr:g}"
    return f"{world} ranks: global batch size {batch}, {batch / world:g} a rank{accumulation}; learning rate {lr:g}, {lr / world:g} a rank"


def environment(device: torch.device) -> dict[str, Any]:
    """What may differ between two starts of a run; the results then differ by rounding only."""
    return {"torch": str(torch.__version__), "device": device.type, "threads": torch.get_num_threads()}
