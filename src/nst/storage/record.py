"""The record of a run: metrics, trackers, progress bar and checkpoints, in the run's folder. Only rank 0 writes."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import nn
from tqdm.auto import tqdm

from nst.config import differences
from nst.evaluate import Metrics
from nst.files import flat, naming, write_whole
from nst.models.weights import save_weights
from nst.storage.checkpoint import Checkpoints, read_checkpoint
from nst.storage.folder import BEST, DIVERGED, METRICS
from nst.storage.trackers import Tracker, cut, on_disk

if TYPE_CHECKING:
    from nst.loop import Training


class Record:
    """Writes a run's logs and checkpoints; in a continued run each step appears once. Every rank calls it."""

    def __init__(
        self,
        training: "Training",
        folder: Path,
        config: Mapping[str, Any],
        trackers: Mapping[str, Tracker] | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Continue from the newest checkpoint, if there is one, and open the logs.

        Args:
            config: for the trackers.
            about: plain values that must be equal in every start of the run; saved in its checkpoints.
            metadata: of weights files.

        Raises:
            ValueError: every checkpoint is damaged, or of another run (the fields are named).
        """
        dist = self.dist = training.dist
        self.folder, self.metadata = folder, dict(metadata or {})
        self.trackers = dict(trackers or {}) if dist.main else {}
        self.tracker_states: dict[str, Any] = {}  # of trackers that this start does not use, too: a later start may
        self.last: Metrics | None = None  # the last evaluation of an earlier start
        self.about = {**(about or {}), "ranks": dist.world}
        self.checkpoints = Checkpoints(self.folder, training.settings.keep_checkpoints)
        newest = self.checkpoints.latest() if dist.main else None
        if newest is not None and (changed := differences(newest[1].get("about"), self.about)):
            raise ValueError(f"checkpoint {newest[0]} is of another run: {'; '.join(changed)}")
        path = [newest and str(newest[0])]
        if dist.world > 1:  # all read the file that rank 0 has found
            torch.distributed.broadcast_object_list(path, 0)
        state = newest[1] if newest else read_checkpoint(Path(path[0])) if path[0] else None
        if state is not None:
            try:
                training.load_state(state)
                self.last = None if state["last"] is None else Metrics(**state["last"])
                self.tracker_states |= state["logs"]["trackers"]
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
                raise ValueError(f"{self.checkpoints.folder}: the newest does not fit this run: {error!r}") from error
        if not dist.main:
            return
        step, steps, metrics = training.progress.step, training.steps, folder / METRICS
        self.seen: dict[str, int] = {}  # the last step of each kind that an earlier start has logged
        for line in metrics.read_bytes().splitlines() if metrics.is_file() else ():
            with suppress(ValueError, KeyError, TypeError):  # a line cut off by a crash
                event = json.loads(line)
                self.seen[str(event["kind"])] = int(event["step"])
        (folder / DIVERGED).unlink(missing_ok=True)
        cut(metrics, 0 if state is None else state["logs"]["metrics"])
        self._lines = metrics.open("ab", buffering=0)
        for name, tracker in self.trackers.items():
            tracker.start(folder, config, bool(self.seen), self.tracker_states.get(name))
        hidden = not (sys.stderr.isatty() or "ipykernel" in sys.modules)  # neither a terminal nor a notebook
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=hidden, dynamic_ncols=True)
        batch, parts = training.loader.batch_size, training.settings.accumulate
        rate = training.optimizer.param_groups[0]["initial_lr"]
        text = f"{dist.world} ranks: global batch size {batch}" if dist.world > 1 else f"batch size {batch}"
        text += f", in {parts} gradient accumulation steps" if parts > 1 else ""
        self.print(f"{text}; learning rate {rate:g}")
        if state is not None:
            self.print(f"continuing after step {step} of {steps}")

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One "train" or "eval" event: numbers to every tracker as `kind/name`, then a line of metrics.jsonl."""
        if not self.dist.main:
            return
        numbers = {name: value for name, value in flat(values, kind, "/").items() if isinstance(value, int | float)}
        for tracker in self.trackers.values():
            if tracker.rewinds or step > self.seen.get(kind, -1):
                tracker.scalars(step, numbers)
        line = json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n"
        with naming(self.folder / METRICS):
            while line:
                line = line[self._lines.write(line) :]

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
        if self.dist.main:
            self.tracker_states |= {name: tracker.state() for name, tracker in self.trackers.items()}
            logs = {"metrics": on_disk(self.folder / METRICS), "trackers": self.tracker_states}
            self.checkpoints.save(step, state | {"logs": logs, "about": self.about})

    def save_best(self, student: nn.Module, epoch: int) -> None:
        """Write the student's weights as those of the best epoch, before the checkpoint that knows of them."""
        if self.dist.main:
            save_weights(self.folder / BEST, student, self.metadata | {"epoch": str(epoch)})

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close everything; an error here hides no earlier one. A non-finite step's names the last good checkpoint."""
        if self.dist.main:
            with nullcontext() if kind is None else suppress(Exception):
                self._bar.close()
                self._lines.close()
                for tracker in self.trackers.values():
                    tracker.close(finished=kind is None)
        if isinstance(error, FloatingPointError):
            if self.dist.main:
                write_whole(self.folder / DIVERGED, json.dumps({"reason": str(error)}).encode())
            hint = "trainer.clip_grad_norm=2 or a lower optim.lr may prevent it"
            raise FloatingPointError(f"{error}; {self.checkpoints.last_good()}; {hint}") from None


def provenance(device: torch.device, world: int) -> dict[str, Any]:
    """Where a result is from: commit, versions of Python and of the packages it depends on, hardware with ranks and threads."""
    versions = {"python": platform.python_version()}
    for package in ("nst", "torch", "torchvision", "hydra-core", "numpy"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"^model name\s*: (.*)", info.read_text(), re.MULTILINE) if info.is_file() else None
    name = cpu[1] if cpu else platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    hardware = {"device": name, "ranks": world, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    return {"commit": commit(), "versions": versions, "hardware": hardware}


def commit() -> str | None:
    """The commit of the source tree the package runs from, with `+dirty` when files differ from it; None outside of a checkout."""
    file, text = Path(__file__), ""
    tracked = ["ls-files", "--error-unmatch", file.name]  # fails for a package installed inside another repository
    try:
        for command in (tracked, ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+dirty"]):
            text = subprocess.check_output(["git", *command], cwd=file.parent, stderr=subprocess.DEVNULL, text=True)
        return text.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
