"""The training loop: epochs of steps, evaluation, and calls to the run's record (logs and checkpoints)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from nst.config import parse_every
from nst.data.batch import Batch, Loader
from nst.evaluate import Metrics, evaluate, has_collapsed
from nst.signals import Interrupted, StopFlag, stop_flag
from nst.training.profile import profiler
from nst.training.trainer import Trainer

SYNC_SECONDS, SYNC_STEPS = 1.0, 64  # with several ranks: how often they synchronise on whether to stop or save
SAVE, STOP = 100, 200  # target_specs of a rank; STOP + the signal's number


class Record(Protocol):
    """The record of a run. Every rank calls it; only the first rank writes."""

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Named values of a step, of the kind "train" or "eval"."""
        ...

    def advance(self, text: str = "") -> None:
        """One step done; `text` is shown at the progress bar."""
        ...

    def print(self, text: str) -> None:
        """Print a line."""
        ...

    def draw_heatmaps(self, step: int) -> None:
        """Draw heat maps of the networks."""
        ...

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, log positions included."""
        ...

    def diverged(self, step: int, error: FloatingPointError) -> FloatingPointError:
        """A non-finite step ends the run; return the error with a remedy."""
        ...


class Loop:
    """One start of a run: from the trainer's current step to the last one."""

    def __init__(
        self,
        trainer: Trainer,
        evaluation: Loader,
        record: Record,
        *,
        last: Metrics | None = None,
        split: str = "test",
        chance: float = 0.0,
    ) -> None:
        """Nothing runs yet.

        Args:
            evaluation: evaluated every `trainer.eval_every` epochs and at the end.
            last: the last evaluation of an earlier start.
            split: what `evaluation` is called in messages.
            chance: chance-level accuracy, in percent.
        """
        self.trainer, self.evaluation, self.record, self.last = trainer, evaluation, record, last
        self.split, self.chance = split, chance
        self.settings, self.ranks = trainer.settings, trainer.ranks
        self.every_steps, self.every_seconds = parse_every(self.settings.checkpoint_every)
        self._started = time.monotonic() - trainer.progress.seconds
        self._saved = self._logged = self._synced = time.monotonic()
        self._sync_step, self._next_sync = trainer.progress.step, 0
        self._images, self._waited = 0, 0.0  # of this rank since the last log line; seconds waiting for batches

    def run(self, profile: Any = None) -> Metrics:
        """Train, evaluate, save, until the last epoch is done.

        Args:
            profile: folder of a profiler trace.

        Returns:
            The last evaluation.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the state is saved.
            FloatingPointError: a non-finite loss or gradient, see `Trainer.window`.
        """
        progress, steps = self.trainer.progress, self.trainer.loader.steps
        with stop_flag() as flag, profiler(profile) as self.stepped:
            if progress.step == 0:
                self.record.draw_heatmaps(0)
            while progress.epoch < self.settings.epochs:
                if progress.step < (progress.epoch + 1) * steps:
                    self.train_epoch(flag)
                self.finish_epoch(flag)
                if (spec := self.stop_or_save(flag)) >= STOP:
                    raise Interrupted(spec - STOP)
        assert self.last is not None
        return self.last

    def train_epoch(self, flag: StopFlag) -> None:
        """The rest of the current epoch's steps."""
        trainer, progress = self.trainer, self.trainer.progress
        trainer.distiller.train()
        self._logged = time.monotonic()  # images/s exclude evaluating and saving
        for batch in self.timed(trainer.loader.epoch(*divmod(progress.step, trainer.loader.steps))):
            self._images += len(batch.labels)
            self.compile(batch, flag)
            trainer.step(batch)
            self.stepped()
            last = progress.step % trainer.loader.steps == 0
            if last or progress.step % self.settings.log_every == 0:
                self.log()
            else:
                self.record.advance()
            if not last:
                spec = self.stop_or_save(flag)
                if spec or (self.every_steps and progress.step % self.every_steps == 0):
                    self.save()
                if spec >= STOP:
                    raise Interrupted(spec - STOP)

    def compile(self, batch: Batch, flag: StopFlag) -> None:
        """Compile the step if it is the first full one; a signal meanwhile stops the run before the step, with nothing to save.

        The result of the comparison is not kept then: Ctrl-C also kills the C++ compiler.
        """
        if not self.trainer.to_compile:
            return
        self.record.print(
            "compiling the step; the first time this takes up to a few minutes (trainer.compile=false disables it)"
        )
        if self.trainer.compile_once(batch):
            (signum,) = self.ranks.max(flag.signum)
            if signum:
                raise Interrupted(signum)

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches and sum the time spent waiting for them."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def stop_or_save(self, flag: StopFlag) -> int:
        """The largest spec of any rank: 0, SAVE (a checkpoint is due) or STOP + a signal's number.

        Several ranks synchronise about once a second, at steps that all of them compute alike.
        """
        step, now = self.trainer.progress.step, time.monotonic()
        if self.ranks.world > 1 and step < self._next_sync and step % self.trainer.loader.steps:
            return 0
        self.ranks.report(step)
        checkpoint_due = now - self._saved > self.every_seconds
        pace = int(1e6 * (now - self._synced) / max(1, step - self._sync_step))  # microseconds a step
        spec, pace = self.ranks.max(STOP + flag.signum if flag.signum else SAVE * checkpoint_due, pace)
        self._synced, self._sync_step = now, step
        self._next_sync = step + min(max(int(1e6 * SYNC_SECONDS) // max(pace, 1), 1), SYNC_STEPS)
        return spec

    def finish_epoch(self, flag: StopFlag) -> None:
        """Evaluate, update the best accuracy, save."""
        progress, settings = self.trainer.progress, self.settings
        epoch = progress.epoch + 1
        if epoch % settings.eval_every == 0 or epoch == settings.epochs:
            self.ranks.broadcast_buffers(self.trainer.distiller)
            model = self.trainer.distiller.student
            if (average := self.trainer.average) is not None:
                self.ranks.broadcast(average.values.values())
                model = average
            self.last = evaluate(model, self._until_stopped(flag), self.ranks, settings.precision)
            self.warn_of_fall(self.last.top1, progress.best_top1)
            if self.last.top1 > progress.best_top1:
                progress.best_top1, progress.best_epoch = self.last.top1, epoch
            values = {"epoch": epoch, "loss": self.last.loss, "top1": self.last.top1, "top5": self.last.top5}
            self.record.log("eval", progress.step, values)
            self.record.print(f"epoch {epoch}/{settings.epochs}: {self.split} top-1 {self.last.top1:.2f} %")
        progress.epoch = epoch
        if epoch == settings.epochs:
            self.record.draw_heatmaps(progress.step)
        self.save()

    def warn_of_fall(self, top1: float, best: float) -> None:
        """Warn if an evaluation has lost more than half of the best accuracy above chance."""
        if has_collapsed(top1, best, self.chance):
            clip = self.settings.clip_grad_norm
            smaller = "trainer.clip_grad_norm=2" if clip is None else f"trainer.clip_grad_norm below {clip:g}"
            self.record.print(
                f"the run has fallen back: top-1 {top1:.2f} % after {best:.2f} % at best. The steps may be too large for this "
                f"sum of losses; if it does not recover, try {smaller}, or a lower optim.lr"
            )

    def _until_stopped(self, flag: StopFlag) -> Iterator[Batch]:
        """The evaluation's batches; a signal on any rank ends them, with the epoch's steps are saved first."""
        for batch in self.evaluation.epoch(0):
            yield batch
            (signum,) = self.ranks.max(flag.signum)
            if signum:
                self.save()
                raise Interrupted(signum)

    def log(self) -> None:
        """Write the means since the last log line."""
        with self.nonfinite_ends_run():
            values = self.trainer.window()
        progress, now = self.trainer.progress, time.monotonic()
        spent, self._logged, progress.seconds = now - self._logged, now, now - self._started
        rates, waits = zip(*self.ranks.gather(self._images / spent, self._waited / spent), strict=True)
        self._images, self._waited = 0, 0.0
        rate, epoch = sum(rates), progress.step / self.trainer.loader.steps
        timing = {"images_per_second": round(rate, 1), "seconds": round(progress.seconds, 2)}
        timing["waiting_for_data"] = round(max(waits), 4)  # fraction of the time, on the rank that waits most
        if self.ranks.world > 1:
            timing |= {f"images_per_second_rank{r}": round(rank_rate, 1) for r, rank_rate in enumerate(rates)}
        self.record.log("train", progress.step, {"epoch": epoch, **values, "timing": timing})
        self.record.advance(
            f"epoch {epoch:.1f}/{self.settings.epochs}, loss {values.get('loss', 0):.3f}, top-1 {values.get('top1', 0):.1f} %, "
            f"{rate:.0f} images/s"
        )

    def save(self) -> None:
        """Write a checkpoint, logs included; never after a step that stops the run."""
        with self.nonfinite_ends_run():
            self.trainer.check_finite()
        self.trainer.progress.seconds = time.monotonic() - self._started
        last = None if self.last is None else vars(self.last)
        self.record.save(self.trainer.progress.step, self.trainer.state() | {"last": last})
        self._saved = time.monotonic()

    @contextmanager
    def nonfinite_ends_run(self) -> Iterator[None]:
        """A block in which a non-finite step ends the run."""
        try:
            yield
        except FloatingPointError as error:
            raise self.record.diverged(self.trainer.progress.step, error) from None
