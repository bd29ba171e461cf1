"""The training loop and its step: what happens to a batch is read here from top to bottom.

`Training` holds all that changes from step to step, and takes the step; `Loop` brings it to the last epoch: log lines,
evaluations, checkpoints, stop signals.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nst.config import TrainerConfig, parse_every
from nst.data.batch import Batch, Loader
from nst.dist import Dist, GatherRows, autocast
from nst.distiller import Distiller, Targets, seed_draws
from nst.evaluate import Evaluation, Metrics
from nst.optim import AveragedWeights, MakeOptimizer, Schedule, make_optimizer
from nst.signals import Interrupted, StopFlag, stop_flag
from nst.storage.folder import has_collapsed, measured
from nst.storage.record import Record
from nst.teacher import Teacher
from nst.trial import check_ranks, compile_step

ONE = Dist(0, 1, torch.device("cpu"))
SYNC_STEPS = 16  # with several ranks: how often they agree on whether to stop or save between the ends of epochs
Forward = Callable[..., tuple[Tensor, dict[str, Tensor]]]  # as `Distiller.forward`


@dataclass
class Progress:
    """The progress of a run; saved in every checkpoint."""

    step: int = 0  # batches seen
    epoch: int = 0  # epochs finished, evaluation included
    best: float = 0.0  # its value, see `Metrics.measure`
    best_epoch: int = 0
    since_best: int = 0  # evaluations since the best one
    seconds: float = 0.0  # spent so far, over all starts


class Training:
    """A student in training: its distiller, optimizer and progress, and the step."""

    def __init__(
        self,
        distiller: Distiller,
        loader: Loader,
        *,
        optimizer: MakeOptimizer,
        schedule: Schedule,
        settings: TrainerConfig,
        dist: Dist = ONE,
        seed: int = 0,
        no_decay: Sequence[str] = (),
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        """Move the distiller to the device and make its optimizer.

        Args:
            loader: of the training images; it fixes the number of steps.
            optimizer: makes one from parameters, such as `partial(torch.optim.SGD, lr=0.1)`.
            seed: every draw of a step is a function of it and the step's number.
            no_decay: parameters without weight decay, see `nst.optim.NO_DECAY`.
            lr_factors: factors of the learning rate for parts, see `nst.optim.rate_factors`.
        """
        self.distiller = distiller.to(dist.device)
        if settings.channels_last:
            distiller.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.loader, self.schedule, self.settings, self.dist, self.seed = loader, schedule, settings, dist, seed
        self.progress, self.steps = Progress(), settings.steps or settings.epochs * loader.steps
        self.epochs = -(-self.steps // loader.steps)  # the last one may be a part
        self.parameters = [p for p in distiller.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(optimizer, distiller, no_decay, lr_factors)
        self.scaler = torch.amp.GradScaler(dist.device.type) if settings.precision == "fp16" else None
        self.average = None if settings.ema is None else AveragedWeights(distiller.student, settings.ema)
        self.inputs = {name for term in distiller.terms for name in term.loss.inputs}
        self.relational = [term for term in distiller.terms if term.loss.relational]
        self.names: tuple[str, ...] = ()  # of the values in `sums`
        self.sums = torch.zeros(0, device=dist.device, dtype=torch.float64)  # of this rank since the last log line
        self.nonfinite = torch.zeros(1, device=dist.device, dtype=torch.float64)  # first bad step: number, its values
        self.forward: nn.Module = distiller
        self.checked = dist.world == 1  # whether the ranks have been compared in this start
        if dist.world > 1:
            gather: Any = GatherRows.apply
            distiller.gather = lambda rows: gather(rows, dist, self.images_in(self.progress.step))
            # Without a term on the logits the last layer has no gradient.
            unused = not any(term.loss.on_logits for term in distiller.terms)
            devices = [dist.device] if dist.device.type == "cuda" else None
            self.forward = DistributedDataParallel(distiller, device_ids=devices, find_unused_parameters=unused)
            # BN does not read its statistics in training, and evaluation starts by broadcasting those of rank 0.
            self.forward.broadcast_buffers = False
        # Compiled code is for full batches; an epoch's last one gathers another number of rows over the ranks, so with a relational
        # loss it would be compiled again and again.
        enabled = dist.device.type == "cuda" if settings.compile is None else settings.compile
        self.compiles: bool | None = None if enabled and not (dist.world > 1 and self.relational) else False
        self.compiled: tuple[int, Forward] | None = None  # for how many images; compiled `forward`

    def step(self, batch: Batch, targets: Targets) -> None:
        """One optimizer step on this rank's images of a global batch.

        Args:
            targets: the teacher's, of this batch; {} without a teacher.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; on a GPU the next call of `means` or `check` raises it.
        """
        step, settings, distiller, dist = self.progress.step, self.settings, self.distiller, self.dist

        # rate and draws: functions of the step
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(group["initial_lr"], step, self.steps)
        seed_draws(step_seed(self.seed, step, dist.rank))
        context = self.context(batch) if self.inputs else {}

        # forward, losses, backward
        sums: dict[str, Tensor] = {}
        parts = self.parts(len(batch.labels)) if settings.accumulate > 1 else [slice(0, len(batch.labels))]
        # whether the loss of the only part is that of the global batch
        plain = dist.world == len(parts) == 1 and not self.relational
        for rows in parts:
            part, labels = batch.images[rows], batch.labels[rows]
            forward = self.forward if self.compiled is None or len(part) != self.compiled[0] else self.compiled[1]
            taught = {key: {name: value[rows] for name, value in target.items()} for key, target in targets.items()}
            inputs = {name: value[rows] if value.ndim else value for name, value in context.items()}
            # several ranks exchange gradients once a step, in its last backward pass
            replicas = self.forward if isinstance(self.forward, DistributedDataParallel) else None
            with nullcontext() if replicas is None or rows is parts[-1] else replicas.no_sync():
                with nullcontext() if settings.precision == "fp32" else autocast(dist.device, settings.precision):
                    logits, values = forward(part, labels, taught, inputs)
                loss = distiller.total(values)
                scaled = loss if plain else self.ddp_scale(loss, values, len(part))
                (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
            # sums over these images; the log holds their means over the training images
            larger = labels.argmax(1) if labels.ndim == 2 else labels  # of a mixed image: its larger class
            found = {"loss": len(part) * loss.detach().double()}
            found["top1"] = 100 * (logits.detach().argmax(1) == larger).sum().double()
            found |= {f"terms/{name}": len(part) * value.detach().double() for name, value in values.items()}
            sums = {name: sums.get(name, 0) + value for name, value in found.items()}

        # clipping, update
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None], foreach=True)
        if settings.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, settings.clip_grad_norm, norm, foreach=True)
        if self.scaler is None:
            self.optimizer.step()
        else:  # skips a step whose gradient overflows, and lowers the scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if not self.checked:
            check_ranks(distiller, dist)
            self.checked = True
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()

        # log: sums on the device, read with the next log line; a non-finite step ends the run
        self.progress.step += 1
        bad = ~torch.isfinite(sums["loss"] if self.scaler is not None else sums["loss"] + norm)
        counts = {"steps": torch.ones_like(norm), "images": torch.full_like(norm, len(batch.labels))}
        row = counts | {"grad_norm": norm if self.scaler is None else norm.nan_to_num(posinf=0)} | sums
        values = torch.stack([value.detach().double() for value in row.values()])
        if not self.names:
            self.names, self.sums = tuple(row), torch.zeros_like(values)
            self.nonfinite = torch.zeros_like(values)
        self.sums = self.sums + values
        values[0].fill_(self.progress.step)
        self.nonfinite = torch.where(bad & (self.nonfinite[0] == 0), values, self.nonfinite)
        if dist.device.type == "cpu" and self.nonfinite[0]:  # on a GPU looking would make the host wait
            self.check()

    def ddp_scale(self, loss: Tensor, values: Mapping[str, Tensor], images: int) -> Tensor:
        """The value for backward: the gradients of ranks and accumulation steps then sum to that of the global batch.

        DDP averages gradients over ranks, and parts of a batch may differ in size, so means over images get a factor. Relational terms
        see the global batch on every rank. A non-finite loss makes the result NaN, and with it every gradient on every rank.
        """
        nan = 0 * loss.detach()
        factor = images * self.dist.world / self.images_in(self.progress.step) + nan
        if not self.relational:
            return loss * factor
        related = self.distiller.total(values, relational=True) * (1 + nan)
        if len(self.relational) == len(self.distiller.terms):
            return related
        return self.distiller.total(values, relational=False) * factor + related

    def context(self, batch: Batch) -> dict[str, Tensor]:
        """What losses may need besides the teacher, for this step; see `nst.losses.base.Input`."""
        step, device = self.progress.step, self.dist.device
        values = {
            "index": batch.indices,
            "epoch": torch.full((), step / self.loader.steps, device=device),
            "progress": torch.full((), step / self.steps, device=device),
            "seed": torch.full((), step_seed(self.seed, step), dtype=torch.int64),  # the same on every rank
        }
        return {name: value for name, value in values.items() if name in self.inputs}

    def images_in(self, step: int) -> int:
        """Images of the global batch of a step; the last batch of an epoch may be smaller."""
        first = step % self.loader.steps * self.loader.batch_size
        return min(self.loader.batch_size, self.loader.num_images - first)

    def parts(self, images: int) -> list[slice]:
        """This rank's images of a step in `trainer.accumulate` parts; fewer, on all ranks, if a rank has fewer images."""
        count = min(self.settings.accumulate, self.images_in(self.progress.step) // self.dist.world) or 1
        return [slice(images * i // count, images * (i + 1) // count) for i in range(count)]

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or `trainer.patience` is at its end."""
        patience = self.settings.patience
        return self.progress.epoch == self.epochs or (patience is not None and self.progress.since_best >= patience)

    def averaged(self) -> AbstractContextManager[None]:
        """A block in which the student has the weights that are evaluated and kept: their average with `trainer.ema`, else its own."""
        return nullcontext() if self.average is None else self.average.adopted()

    def means(self) -> dict[str, Any]:
        """Means over all ranks since the last call, for a log line; raises as `check`. The only host sync of the loop on a GPU."""
        self.check()
        sums = dict(zip(self.names, self.dist.sum(self.sums).tolist(), strict=True))
        self.sums = torch.zeros_like(self.sums)
        steps, images = sums.pop("steps", 0) or 1, sums.pop("images", 0) or 1
        means = {name: value / (steps if name == "grad_norm" else images) for name, value in sums.items()}
        if not self.distiller.classifies:
            means.pop("top1", None)
        terms = {name.removeprefix("terms/"): means.pop(name) for name in list(means) if name.startswith("terms/")}
        weighted = {term.name: term.weight * terms[term.name] for term in self.distiller.terms if terms}
        return {**means, "terms": terms, "weighted": weighted, "lr": self.optimizer.param_groups[0]["lr"]}

    def check(self) -> None:
        """Raises FloatingPointError with the number of the first non-finite step, and its terms that are not finite on any rank.

        With fp16 a gradient that is not finite is no error while the scale of the loss can still be lowered.
        """
        # on a CPU each rank looks after each step, and all see a non-finite gradient
        (step,) = self.dist.max(int(self.nonfinite[0])) if self.dist.device.type != "cpu" else [int(self.nonfinite[0])]
        if step:
            bad = self.dist.sum((~torch.isfinite(self.nonfinite)).double()).tolist()
            found = [name for name, flag in zip(self.names, bad, strict=True) if flag and name.startswith("terms/")]
            terms = ", ".join(name.removeprefix("terms/") for name in found)
            where = f"terms not finite: {terms or 'none, so the backward pass'}"
            raise FloatingPointError(f"step {step}: the loss or its gradient is not finite; {where}")
        if self.scaler is not None and self.scaler.get_scale() < 1:
            reason = "the gradient overflows fp16 at any scale; try trainer.precision=bf16"
            raise FloatingPointError(f"step {self.progress.step}: {reason}")

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, equal on every rank. A collective call."""
        return {
            "progress": asdict(self.progress),
            "distiller": self.distiller.state_dict(),
            "unsaved_buffers": self._unsaved_buffers(),
            "optimizer": self.optimizer.state_dict(),
            "compiled": self.compiles,
            "sums": {"names": list(self.names), "values": self.dist.stack(self.sums)},
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "ema": None if self.average is None else self.average.values,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state()` of as many ranks. Raises ValueError where it does not fit."""
        self.progress = Progress(**state["progress"])
        if self.progress.step > self.steps:
            raise ValueError(f"it is of step {self.progress.step}, the run has {self.steps}")
        self.distiller.load_state_dict(state["distiller"])
        for name, buffer in self._unsaved_buffers().items():
            buffer.copy_(state["unsaved_buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.compiles = state["compiled"]
        self.names = tuple(state["sums"]["names"])
        self.sums = state["sums"]["values"][self.dist.rank].to(self.dist.device).clone()
        self.nonfinite = torch.zeros_like(self.sums)
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            for name, value in self.average.values.items():
                value.copy_(state["ema"][name])

    def _unsaved_buffers(self) -> dict[str, Tensor]:
        """The buffers that a state dict leaves out (`persistent=False`): a step may still depend on them."""
        saved = self.distiller.state_dict()
        return {name: buffer for name, buffer in self.distiller.named_buffers() if name not in saved}


def step_seed(*key: int) -> int:
    """32 bits drawn from the run's seed, the step and, where ranks differ, the rank."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class Loop:
    """One start of a run: from the training's current step to the last one."""

    def __init__(
        self,
        training: Training,
        teacher: Teacher,
        evaluation: Evaluation,
        record: Record,
        split: str = "test",
        chance: float = 0.0,
    ) -> None:
        """Nothing runs yet.

        Args:
            evaluation: of the student on the images of `split`, every `trainer.eval_every` epochs and at the end.
            record: of the run, which holds the last evaluation of an earlier start.
            chance: chance-level accuracy, in percent.
        """
        self.training, self.teacher, self.evaluation, self.record = training, teacher, evaluation, record
        self.split, self.chance, self.last, self.flag = split, chance, record.last, StopFlag()
        self.after_step: Callable[[], object] = bool  # called after each step, such as a profiler's `step`
        self.started = time.monotonic() - training.progress.seconds
        self.saved = self.logged = time.monotonic()
        self.images, self.waited = 0, 0.0  # since the last log line: of all ranks; seconds this one waited for batches

    def run(self) -> Metrics:
        """Train, evaluate, save, until the last epoch is done; the last evaluation.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the state is saved.
            FloatingPointError: a non-finite loss or gradient; names the step and the terms.
        """
        training, record, dist = self.training, self.record, self.training.dist
        settings, progress = training.settings, training.progress
        every_steps, every_seconds = parse_every(settings.checkpoint_every)
        with stop_flag() as self.flag:
            while not training.finished:
                training.distiller.train()
                self.logged = time.monotonic()  # images/s exclude evaluating and saving
                for batch, targets in self.teacher.targets(self.rest_of_epoch()):
                    full = training.images_in(progress.step) == training.images_in(0)
                    if training.compiles is not False and training.compiled is None and full:
                        record.print("compiling the step: up to a few minutes; trainer.compile=false disables it")
                        compile_step(training, self.teacher, batch)
                        # Ctrl-C also kills the C++ compiler: the comparison's result is not kept, and there is nothing to save
                        self.stop_if_asked()
                    self.images += training.images_in(progress.step)
                    training.step(batch, targets)
                    self.after_step()
                    if progress.step % training.loader.steps == 0 or progress.step == training.steps:
                        self.log()
                        continue  # evaluated, then saved
                    if progress.step % settings.log_every == 0:
                        self.log()
                    else:
                        record.advance()
                    signum, due = self.flag.signum, int(time.monotonic() - self.saved > every_seconds)
                    if dist.world > 1:  # ranks agree now and then
                        signum, due = (0, 0) if progress.step % SYNC_STEPS else dist.max(signum, due)
                    if signum or due or (every_steps and progress.step % every_steps == 0):
                        self.save()
                    if signum:
                        raise Interrupted(signum)
                self.finish_epoch()
                self.stop_if_asked()
        assert self.last is not None
        return self.last

    def rest_of_epoch(self) -> Iterator[Batch]:
        """The batches of the current epoch that are still to come; sums the time spent waiting for them."""
        progress, loader = self.training.progress, self.training.loader
        left = min((progress.epoch + 1) * loader.steps, self.training.steps) - progress.step
        start = time.monotonic()
        for batch in islice(loader.epoch(*divmod(progress.step, loader.steps)), left):
            self.waited += time.monotonic() - start
            yield batch
            start = time.monotonic()

    def finish_epoch(self) -> None:
        """Evaluate, keep the best weights, save."""
        training, record = self.training, self.record
        progress, settings, dist = training.progress, training.settings, training.dist
        epoch = progress.epoch + 1
        if epoch % settings.eval_every == 0 or epoch == training.epochs:
            dist.broadcast(training.distiller.buffers())  # BN statistics
            if training.average is not None:
                dist.broadcast(training.average.values.values())
            try:
                with training.averaged():
                    self.last = last = self.evaluation(self.split, self.stop_if_asked)
                    progress.since_best += 1
                    if not progress.best_epoch or last.better(progress.best):
                        progress.best, progress.best_epoch, progress.since_best = last.value, epoch, 0
                        record.save_best(training.distiller.student, epoch)
            except Interrupted:  # the epoch's steps are saved, its evaluation is not
                self.save()
                raise
            values = {key: getattr(last, key) for key in ("loss", "top1", "top5", "knn")}
            values = {key: value for key, value in values.items() if value is not None}
            record.log("eval", progress.step, {"epoch": epoch, **values, **last.others})
            others = "".join(f", {name} {value:.4g}" for name, value in last.others.items())
            shown, clip = measured(last.measure, last.value), settings.clip_grad_norm
            record.print(f"epoch {epoch}/{training.epochs} of {record.metadata['arch']}: {self.split} {shown}{others}")
            if last.measure != "loss" and has_collapsed(last.value, progress.best, self.chance):
                smaller = "=2" if clip is None else f" below {clip:g}"
                record.print(
                    f"the run has collapsed: {shown} after {progress.best:.2f} % at best; if it does not recover, try "
                    f"trainer.clip_grad_norm{smaller}, or a lower optim.lr"
                )
        progress.epoch = epoch
        if training.finished and epoch < training.epochs:
            record.print(f"stopped early by trainer.patience: nothing better since epoch {progress.best_epoch}")
        self.save()

    def stop_if_asked(self) -> None:
        """Raises Interrupted if a signal has come to any rank. A collective call."""
        (signum,) = self.training.dist.max(self.flag.signum)
        if signum:
            raise Interrupted(signum)

    def log(self) -> None:
        """Write the means since the last log line."""
        training, progress, now = self.training, self.training.progress, time.monotonic()
        values, spent, progress.seconds = training.means(), now - self.logged, now - self.started
        (waiting,) = training.dist.max(round(10_000 * self.waited / spent))
        rate, epoch = self.images / spent, progress.step / training.loader.steps
        self.logged, self.images, self.waited = now, 0, 0.0
        timing = {"images_per_second": round(rate, 1), "seconds": round(progress.seconds, 2)}
        timing["waiting_for_data"] = waiting / 10_000  # fraction of the time, on the rank that waits most
        self.record.log("train", progress.step, {"epoch": epoch, **values, "timing": timing})
        top1 = f", top-1 {values['top1']:.1f} %" if "top1" in values else ""
        text = f"epoch {epoch:.1f}/{training.epochs}, loss {values.get('loss', 0):.3f}{top1}, {rate:.0f} images/s"
        self.record.advance(text)

    def save(self) -> None:
        """Write a checkpoint, logs included; never after a non-finite step."""
        training = self.training
        training.check()
        training.progress.seconds = time.monotonic() - self.started
        last = None if self.last is None else asdict(self.last)
        self.record.save(training.progress.step, training.state() | {"last": last})
        self.saved = time.monotonic()
