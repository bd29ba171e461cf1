"""The record of a run: metrics, trackers, progress bar and checkpoints, in the run's folder. Only rank 0 writes."""

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn
from tqdm.auto import tqdm

from nst.config import differences
from nst.evaluate import Metrics
from nst.files import naming, write_whole
from nst.models.weights import save_weights
from nst.storage.checkpoint import Checkpoints, read_checkpoint
from nst.storage.folder import BEST, DIVERGED, METRICS
from nst.storage.trackers import RunInfo, Tracker, cut, flat, on_disk

if TYPE_CHECKING:
    from nst.loop import Training

log = logging.getLogger(__name__)

PACKAGES = ("nst", "torch", "torchvision", "hydra-core", "numpy")  # that results depend on

Draw = Callable[[], dict[str, Tensor]]  # named pictures [3, H, W] in 0…1


class Record:
    """Writes a run's logs and checkpoints; in a continued run each step appears once. Every rank calls it."""

    def __init__(
        self,
        training: "Training",
        info: RunInfo,
        trackers: Mapping[str, Tracker] | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        draw: Draw | None = None,
    ) -> None:
        """Continue from the newest checkpoint, if there is one, and open the logs.

        Args:
            about: plain values that must be equal in every start of the run; saved in its checkpoints.
            metadata: of weights files.
            draw: makes pictures, before the first step and after the last.

        Raises:
            ValueError: every checkpoint is damaged, or they are of another run (the fields are named).
        """
        self.settings, self.dist, self.folder = training.settings, training.dist, info.folder
        self.about = {**(about or {}), "ranks": self.dist.world}
        self.draw, self.metadata = draw, dict(metadata or {})
        self.checkpoints = Checkpoints(self.folder, self.settings.keep_checkpoints)
        state = self._newest()
        self.last: Metrics | None = None  # the last evaluation of an earlier start
        self.trackers = dict(trackers or {}) if self.dist.main else {}
        self.tracker_states: dict[str, Any] = {}  # of trackers that this start does not use, too: a later start may
        if state is not None:
            try:
                training.load_state(state)
                self.last = None if state["last"] is None else Metrics(**state["last"])
                self.tracker_states |= state["logs"]["trackers"]
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
                raise ValueError(
                    f"the newest checkpoint in {self.checkpoints.folder} does not fit this run: {error!r}; delete it to use the "
                    f"one before it, or {self.folder} to start over"
                ) from error
        if self.dist.main:
            self._open(training, info, None if state is None else state["logs"])

    def _newest(self) -> dict[str, Any] | None:
        """The newest intact checkpoint: rank 0 finds it, all ranks read the same file."""
        newest = self.checkpoints.latest() if self.dist.main else None
        if newest is not None:
            path, state = newest
            if changed := differences(state.get("about"), self.about):
                raise ValueError(f"checkpoint {path} is of another run: {'; '.join(changed)}")
            if changed := differences(state.get("environment"), environment(self.dist.device)):
                log.warning("results may differ in the last bits from here on: %s", "; ".join(changed))
        if self.dist.world == 1:
            return newest[1] if newest else None
        names = [str(newest[0]) if newest else None]
        torch.distributed.broadcast_object_list(names, 0)
        if names[0] is None:
            return None
        return newest[1] if newest else read_checkpoint(Path(names[0]))

    def _open(self, training: "Training", info: RunInfo, logs: Mapping[str, Any] | None) -> None:
        step, steps = training.progress.step, training.steps
        (self.folder / DIVERGED).unlink(missing_ok=True)
        logged_steps = last_steps(self.folder / METRICS)
        cut(self.folder / METRICS, 0 if logs is None else logs["metrics"])
        self._lines = (self.folder / METRICS).open("ab", buffering=0)
        for name, tracker in self.trackers.items():
            tracker.start(info, logged_steps, self.tracker_states.get(name))
        seen = sys.stderr.isatty() or "ipykernel" in sys.modules  # a terminal, or a notebook
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=not seen, dynamic_ncols=True)
        self._bar.set_postfix_str(f"epoch {step / training.loader.steps:.1f}/{training.epochs}", refresh=False)
        self.print(batch_line(training))
        if logs is not None:
            self.print(f"continuing after step {step} of {steps}")

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One event: numbers to every tracker as `kind/name`, then a line `{"kind", "step", **values}` of metrics.jsonl.

        Args:
            kind: "train" or "eval".
        """
        if not self.dist.main:
            return
        numbers = {name: value for name, value in flat({kind: values}, "/").items() if isinstance(value, int | float)}
        for tracker in self.trackers.values():
            tracker.scalars(kind, step, numbers)
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
        """One step done; `text` is shown at the progress bar."""
        if self.dist.main:
            if text:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()

    def print(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.dist.main:
            self._bar.write(text)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint with the lengths of the logs, which are synced to disk first."""
        if not self.dist.main:
            return
        self.tracker_states |= {name: tracker.state() for name, tracker in self.trackers.items()}
        logs = {"metrics": on_disk(self.folder / METRICS), "trackers": self.tracker_states}
        extra = {"logs": logs, "about": self.about, "environment": environment(self.dist.device)}
        self.checkpoints.save(step, state | extra)

    def save_best(self, student: nn.Module, epoch: int) -> None:
        """Write the student's weights as those of the best epoch so far. Before the checkpoint that knows of them: a killed run repeats the epoch."""
        if self.dist.main:
            save_weights(self.folder / BEST, student, self.metadata | {"epoch": str(epoch)})

    @contextmanager
    def ending_when_nonfinite(self) -> Iterator[None]:
        """A block in which a non-finite step ends the run: writes `diverged.json`, names the last good checkpoint and a remedy."""
        try:
            yield
        except FloatingPointError as error:
            if self.dist.main:
                write_whole(self.folder / DIVERGED, json.dumps({"reason": str(error)}).encode())
            hint = "trainer.clip_grad_norm=2 or a lower optim.lr may prevent it"
            raise FloatingPointError(f"{error}; {self.checkpoints.last_good()}; {hint}") from None

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Flush and close everything; an error here does not hide an earlier one."""
        if not self.dist.main:
            return
        with nullcontext() if kind is None else suppress(Exception):
            self._bar.close()
            self._lines.close()
            for tracker in self.trackers.values():
                tracker.close(finished=kind is None)


def last_steps(metrics: Path) -> dict[str, int]:
    """The last step of each kind that metrics.jsonl holds, whole lines only."""
    steps: dict[str, int] = {}
    if metrics.is_file():
        for line in metrics.read_bytes().splitlines(keepends=True):
            with suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                steps[str(event["kind"])] = int(event["step"])
    return steps


def batch_line(training: "Training") -> str:
    """The global and per-rank batch size and learning rate."""
    batch, world = training.loader.batch_size, training.dist.world
    lr, steps = training.optimizer.param_groups[0]["initial_lr"], training.settings.accumulate
    accumulation = f", in {steps} gradient accumulation steps of {batch / world / steps:g}" if steps > 1 else ""
    if world == 1:
        return f"batch size {batch}{accumulation}; learning rate {lr:g}"
    return f"{world} ranks: global batch size {batch}, {batch / world:g} a rank{accumulation}; learning rate {lr:g}, {lr / world:g} a rank"


def environment(device: torch.device) -> dict[str, Any]:
    """What may differ between two starts of a run; the results then differ by rounding only."""
    return {"torch": str(torch.__version__), "device": device.type, "threads": torch.get_num_threads()}


def provenance(device: torch.device, world: int) -> dict[str, object]:
    """Where a result is from: commit, versions of the packages, hardware."""
    return {"commit": commit(), "versions": versions(), "hardware": hardware(device, world)}


def commit() -> str | None:
    """The commit of the source tree the package runs from, with `+dirty` when files differ from it; None outside of a checkout."""
    file = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # fails for a package installed inside another repository
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    result = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            result[name] = version(name)
    return result


def hardware(device: torch.device, world: int) -> dict[str, object]:
    """The device by name, threads and ranks."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"device": name, "ranks": world, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
