"""From the first step to the last: epochs, evaluation, logs, checkpoints, signals."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nst.config import parse_every
from nst.data.batch import Batch, Loader
from nst.errors import differences
from nst.files import write_whole
from nst.runs.checkpoint import Checkpoints, read_checkpoint
from nst.runs.prune import Pruned, median_of_others
from nst.runs.trackers import Tracker
from nst.training.evaluate import Metrics, evaluate
from nst.training.profile import profiler
from nst.training.signals import Interrupted, StopFlag, stop_flag
from nst.training.trainer import Trainer

log = logging.getLogger(__name__)

DIVERGED = "diverged.json"  # in the folder of a run that a non-finite loss or gradient stopped: step and reason
ASK_SECONDS, ASK_STEPS = 1.0, 64  # with several ranks: how often they ask whether any of them wants to stop or save
SAVE, STOP = 100, 200  # what a rank may want; STOP + the signal's number


class Fit:
    """One start of a run: continues from the newest checkpoint and takes the trainer to its last step."""

    def __init__(
        self,
        trainer: Trainer,
        evaluation: Loader,
        folder: Path,
        draw: Callable[[], dict[str, Tensor]] | None = None,
        show: bool = True,
        about: dict[str, Any] | None = None,
        split: str = "test",
    ) -> None:
        """Load the newest checkpoint, open the logs.

        Args:
            evaluation: evaluated every `trainer.eval_every` epochs and at the end.
            folder: the run's; only rank 0 writes there.
            draw: makes named pictures for TensorBoard, before the first step and after the last.
            show: print progress.
            split: what `evaluation` is called in messages.
            about: plain values that every start of the run must share; they are kept in its checkpoints.

        Raises:
            ValueError: every checkpoint is damaged, or they are of a run about something else (the fields are named).
        """
        self.trainer, self.evaluation, self.draw, self.split = trainer, evaluation, draw, split
        self.settings, self.ranks, self.folder = trainer.settings, trainer.ranks, folder
        self.about = {**(about or {}), "ranks": self.ranks.world}
        self.checkpoints = Checkpoints(folder, self.settings.keep_checkpoints)
        self.every_steps, self.every_seconds = parse_every(self.settings.checkpoint_every)
        state = self._newest()
        if state is not None:
            trainer.load_state(state)
        last = None if state is None else state["last"]
        self.last = Metrics(**last) if last else None
        self.tracker = self._open_logs(state, show) if self.ranks.main else None
        self._started = time.monotonic() - trainer.progress.seconds
        self._saved = self._logged = self._asked = time.monotonic()
        self._asked_at, self._ask_at = trainer.progress.step, 0
        self._images, self._waited = 0, 0.0  # of this rank since the last log line; seconds waiting for batches

    def _newest(self) -> dict[str, Any] | None:
        """The newest intact checkpoint: rank 0 looks, all ranks read the same file."""
        found = self.checkpoints.latest() if self.ranks.main else None
        if found is not None:
            path, state = found
            if changed := differences(state["about"], self.about):
                raise ValueError(f"checkpoint {path} is of another run: {'; '.join(changed)}")
            if changed := differences(state["environment"], environment(self.ranks.device)):
                log.warning("results may differ in the last bits from here on: %s", "; ".join(changed))
        if self.ranks.world == 1:
            return found[1] if found else None
        names = [str(found[0]) if found else None]
        dist.broadcast_object_list(names, 0)
        if names[0] is None:
            return None
        return found[1] if found else read_checkpoint(Path(names[0]))

    def _open_logs(self, state: dict[str, Any] | None, show: bool) -> Tracker:
        step, steps = self.trainer.progress.step, self.trainer.steps
        tracker = Tracker(self.folder, None if state is None else state["logs"], steps, step, show)
        tracker.say(shares(self.trainer))
        if state is not None:
            tracker.say(f"continuing after step {step} of {steps}")
        return tracker

    def run(self) -> Metrics:
        """Train, evaluate, save, until the last epoch is done.

        Returns:
            The last evaluation.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the state is saved.
            FloatingPointError: a non-finite loss or gradient, see `Trainer.window`.
            Pruned: worse than others like it (`trainer.prune_after`); the state is saved.
        """
        progress, steps = self.trainer.progress, self.trainer.loader.steps
        trace = self.folder / "profile" if self.settings.profile and self.ranks.main else None
        if self.ranks.main:
            (self.folder / DIVERGED).unlink(missing_ok=True)
        with self.tracker or nullcontext(), stop_flag() as flag, profiler(trace) as self.stepped:
            if progress.step == 0:
                self.pictures()
            while progress.epoch < self.settings.epochs:
                if progress.step < (progress.epoch + 1) * steps:
                    self.train_epoch(flag)
                self.finish_epoch(flag)
                if (wanted := self.wanted(flag)) >= STOP:
                    raise Interrupted(wanted - STOP)
                self.prune()
        assert self.last is not None
        return self.last

    def train_epoch(self, flag: StopFlag) -> None:
        """The rest of the current epoch's steps."""
        trainer, progress = self.trainer, self.trainer.progress
        trainer.distiller.train()
        self._logged = time.monotonic()  # evaluating and saving are no part of the rate
        for batch in self.timed(trainer.loader.epoch(*divmod(progress.step, trainer.loader.steps))):
            self._images += len(batch.labels)
            untried = not trainer.maybe_compiled.tried
            self.prepare(batch, flag)
            trainer.step(batch)
            self.stepped()
            last = progress.step % trainer.loader.steps == 0
            if last or progress.step % self.settings.log_every == 0:
                self.log()
            elif self.tracker is not None:
                self.tracker.advance()
            if not last:
                wanted = self.wanted(flag)
                decided = untried and trainer.maybe_compiled.tried  # by the clock: a restart must know it
                if wanted or decided or (self.every_steps and progress.step % self.every_steps == 0):
                    self.save()
                if wanted >= STOP:
                    raise Interrupted(wanted - STOP)

    def prepare(self, batch: Batch, flag: StopFlag) -> None:
        """Compile what is to be compiled; a signal meanwhile stops the run before the step, with nothing to save.

        What was found out about compiling is not kept then: Ctrl-C ends the C++ compiler, too.
        """
        if self.trainer.prepare(batch):
            (signum,) = self.ranks.max(flag.signum)
            if signum:
                raise Interrupted(signum)

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time spent waiting for them is added up."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def wanted(self, flag: StopFlag) -> int:
        """What any rank wants now: 0, SAVE (the time has come) or STOP + a signal's number.

        Several ranks ask each other about once a second, at steps that all of them know.
        """
        step, now = self.trainer.progress.step, time.monotonic()
        if self.ranks.world > 1 and step < self._ask_at and step % self.trainer.loader.steps:
            return 0
        due = now - self._saved > self.every_seconds
        pace = int(1e6 * (now - self._asked) / max(1, step - self._asked_at))  # microseconds a step
        wish, pace = self.ranks.max(STOP + flag.signum if flag.signum else SAVE * due, pace)
        self._asked, self._asked_at = now, step
        self._ask_at = step + min(max(int(1e6 * ASK_SECONDS) // max(pace, 1), 1), ASK_STEPS)
        return wish

    def finish_epoch(self, flag: StopFlag) -> None:
        """Evaluate, remember the best, save."""
        progress, settings = self.trainer.progress, self.settings
        epoch = progress.epoch + 1
        if epoch % settings.eval_every == 0 or epoch == settings.epochs:
            self.ranks.share_buffers(self.trainer.distiller)
            model = self.trainer.distiller.student
            self.last = evaluate(model, self._until_stopped(flag), self.ranks, settings.precision)
            if self.last.top1 > progress.best_top1:
                progress.best_top1, progress.best_epoch = self.last.top1, epoch
            if self.tracker is not None:
                values = {"epoch": epoch, "loss": self.last.loss, "top1": self.last.top1, "top5": self.last.top5}
                self.tracker.log("eval", progress.step, values)
                self.tracker.say(f"epoch {epoch}/{settings.epochs}: {self.split} top-1 {self.last.top1:.2f} %")
        progress.epoch = epoch
        if epoch == settings.epochs:
            self.pictures()
        self.save()

    def prune(self) -> None:
        """Stop here if the run does worse than others like it, and `trainer.prune_after` asks to."""
        after, epoch, best = self.settings.prune_after, self.trainer.progress.epoch, self.trainer.progress.best_top1
        if after is None or not after <= epoch < self.settings.epochs:
            return
        middle = median_of_others(self.folder, epoch) if self.ranks.main else None
        (worse,) = self.ranks.max(int(middle is not None and best < middle))
        if worse:
            pruned = Pruned(epoch, best, middle or 0.0)
            if self.ranks.main:
                pruned.note(self.folder)
            raise pruned

    def _until_stopped(self, flag: StopFlag) -> Iterator[Batch]:
        """The evaluation's batches; a signal on any rank ends them, with the epoch's steps saved."""
        for batch in self.evaluation.epoch(0):
            yield batch
            (signum,) = self.ranks.max(flag.signum)
            if signum:
                self.save()
                raise Interrupted(signum)

    def log(self) -> None:
        """Write the means since the last log line."""
        with self._naming_last_good():
            values = self.trainer.window()
        progress, now = self.trainer.progress, time.monotonic()
        spent, self._logged, progress.seconds = now - self._logged, now, now - self._started
        rates, waits = zip(*self.ranks.gather(self._images / spent, self._waited / spent), strict=True)
        self._images, self._waited = 0, 0.0
        if self.tracker is None:
            return
        rate, epoch = sum(rates), progress.step / self.trainer.loader.steps
        timing = {"images_per_second": round(rate, 1), "seconds": round(progress.seconds, 2)}
        timing["waiting_for_data"] = round(max(waits), 4)  # part of the time, on the rank that waits most
        if self.ranks.world > 1:
            timing |= {f"images_per_second_rank{r}": round(own, 1) for r, own in enumerate(rates)}
        self.tracker.log("train", progress.step, {"epoch": epoch, **values, "timing": timing})
        self.tracker.advance(f"loss {values['loss']:.3f}, top-1 {values['top1']:.1f} %, {rate:.0f} images/s")

    def save(self) -> None:
        """A checkpoint of this moment, logs included; never one after a step that stops the run."""
        with self._naming_last_good():
            self.trainer.check_finite()
        self.trainer.progress.seconds = time.monotonic() - self._started
        state = self.trainer.state()
        if self.tracker is not None:
            state |= {
                "last": None if self.last is None else vars(self.last),
                "logs": self.tracker.sizes(),
                "about": self.about,
                "environment": environment(self.ranks.device),
            }
            self.checkpoints.save(self.trainer.progress.step, state)
        self._saved = time.monotonic()

    @contextmanager
    def _naming_last_good(self) -> Iterator[None]:
        try:
            yield
        except FloatingPointError as error:
            if self.ranks.main:
                note = {"step": self.trainer.progress.step, "reason": str(error)}
                write_whole(self.folder / DIVERGED, json.dumps(note).encode())
            hint = "trainer.skip_nonfinite=true leaves such steps out"
            raise FloatingPointError(f"{error}; {self.checkpoints.last_good()}; {hint}") from None

    def pictures(self) -> None:
        """Draw, where there is something to draw."""
        if self.draw is not None and self.tracker is not None:
            for name, grid in self.draw().items():
                self.tracker.images(name, grid, self.trainer.progress.step)


def shares(trainer: Trainer) -> str:
    """Whose the batch size and the learning rate are: both are those of all ranks together."""
    batch, lr, world = trainer.loader.batch_size, trainer.optim.lr, trainer.ranks.world
    parts = trainer.settings.accumulate
    taken = f", taken in {parts} parts of {batch / world / parts:g}" if parts > 1 else ""
    if world == 1:
        return f"batch size {batch}{taken}; learning rate {lr:g}"
    return f"{world} ranks: batch size {batch}, {batch / world:g} a rank{taken}; learning rate {lr:g}, {lr / world:g} a rank"


def environment(device: torch.device) -> dict[str, Any]:
    """What may change between two starts of a run, at the price of the last bits."""
    return {"torch": str(torch.__version__), "device": device.type, "threads": torch.get_num_threads()}
