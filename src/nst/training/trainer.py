"""One training step: `Trainer.step`, from batch to updated weights."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nst.config import TrainerConfig
from nst.data.batch import Batch, Loader
from nst.dist import Dist, gather_rows
from nst.distiller import Distiller, Targets
from nst.optim import AveragedWeights, MakeOptimizer, Schedule, make_optimizer, step_unless
from nst.precision import autocast
from nst.seeds import seed_draws
from nst.teacher import Teacher
from nst.training.compiled import CompiledForward
from nst.training.meter import Meter
from nst.training.scaler import GradientScaler
from nst.training.sync_bn import sync_batch_norms

Context = dict[str, Tensor]  # what losses may need besides the teacher's targets; see `losses.base.Input`


@dataclass
class Progress:
    """The progress of a run; saved in every checkpoint."""

    step: int = 0  # batches seen
    skipped: int = 0  # of them, without an update (non-finite gradient)
    epoch: int = 0  # epochs finished, evaluation included
    best_top1: float = 0.0
    best_epoch: int = 0
    seconds: float = 0.0  # spent so far, over all starts


class Trainer:
    """Trains a distiller on a loader with the targets of a teacher."""

    def __init__(
        self,
        distiller: Distiller,
        source: Teacher,
        loader: Loader,
        *,
        optimizer: MakeOptimizer,
        schedule: Schedule,
        settings: TrainerConfig,
        ranks: Dist,
        seed: int,
        no_decay: Sequence[str] = (),
    ) -> None:
        """Move the distiller to the ranks' device and make its optimizer; nothing is read or written yet.

        Args:
            source: of the teacher's targets of a batch, live or cached.
            optimizer: makes one from parameters, such as `partial(torch.optim.SGD, lr=0.1)`.
            no_decay: parameters without weight decay, see `optimizer.NoDecay`.
        """
        self.distiller = distiller.to(ranks.device)
        if settings.sync_bn and ranks.world > 1:
            local_losses = [loss for loss in distiller.losses.values() if not getattr(loss, "relational", False)]
            for module in (distiller.student, *local_losses):
                sync_batch_norms(module, ranks.device)
        if settings.channels_last:
            distiller.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.source, self.loader, self.schedule = source, loader, schedule
        self.settings, self.ranks, self.seed = settings, ranks, seed
        self.steps = settings.epochs * loader.steps
        self.progress = Progress()
        self.parameters = [p for p in distiller.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(optimizer, distiller, no_decay)
        self.scaler = GradientScaler(ranks.device) if settings.precision == "fp16" else None
        self.average = None if settings.ema is None else AveragedWeights(distiller.student, settings.ema)
        self.meter = Meter(ranks)
        self.checked = ranks.world == 1  # whether the ranks have been compared in this start
        self.replicas: nn.Module = self._replicate()
        compile = ranks.device.type == "cuda" if settings.compile is None else settings.compile
        # An epoch's last batch gathers another number of rows over the ranks, so compiled code would recompile again and again.
        compile = compile and not (ranks.world > 1 and any(term.loss.relational for term in distiller.terms))
        graphs = settings.accumulate == 1 and ranks.world == 1
        self.forward = CompiledForward(self.replicas, distiller, compile, ranks, graphs)

    def _replicate(self) -> nn.Module:
        """The distiller, or with several ranks its DDP wrapper."""
        ranks, distiller = self.ranks, self.distiller
        if ranks.world == 1:
            return distiller
        distiller.gather = lambda rows: gather_rows(rows, ranks, self.images_in(self.progress.step))
        replicas = DistributedDataParallel(
            distiller,
            device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
            # Without a term on the logits the last layer has no gradient.
            find_unused_parameters=not any(term.loss.on_logits for term in distiller.terms),
        )
        # BN does not read its statistics in training, and evaluation starts by broadcasting those of rank 0.
        replicas.broadcast_buffers = False
        return replicas

    def step(self, batch: Batch) -> None:
        """One optimizer step on this rank's images of a global batch."""
        step, settings = self.progress.step, self.settings
        self.compile_once(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(group["initial_lr"], step, self.steps)
        seed_draws(_seed(self.seed, step, self.ranks.rank))

        # A skipped step must not change the buffers (BN statistics, memories) either.
        buffers = list(self.distiller.buffers()) if self.scaler else []
        before = [buffer.clone() for buffer in buffers]
        targets, context = self.source(batch), self.context(batch)
        sums: dict[str, Tensor] = {}
        micro_batches = self.micro_batches(len(batch.labels))
        for rows in micro_batches:
            with self.exchange_gradients(rows is micro_batches[-1]):
                logits, values = self.run(batch, rows, targets, context)
                loss = self.distiller.total(values)
                self.amplified(self.scaled(loss, values, rows.stop - rows.start)).backward()
            for name, value in self.metrics(logits, batch.labels[rows], loss, values).items():
                sums[name] = sums.get(name, 0) + value
        if self.scaler is not None:
            self.scaler.unscale(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None], foreach=True)
        if settings.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, settings.clip_grad_norm, norm, foreach=True)

        # A non-finite gradient (or loss) on any rank skips the update; with fp16 it is no fault while the scale can still be lowered.
        bad = ~torch.isfinite(norm)
        normal = torch.zeros_like(bad) if self.scaler is None else self.scaler.can_be_lowered()
        step_unless(bad, self.optimizer)
        if self.scaler is not None:
            self.scaler.update(bad)
        if not self.checked:
            self.check_ranks()
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(torch.where(bad, old, buffer))
        if self.average is not None:
            self.average.update(bad)
        self.meter.add(step + 1, len(batch.labels), {"grad_norm": norm}, sums, bad, normal)
        self.progress.step += 1

    def run(self, batch: Batch, rows: slice, targets: Targets, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and the terms' values for the images `rows` of a batch."""
        sliced_targets = {key: {name: value[rows] for name, value in target.items()} for key, target in targets.items()}
        sliced_context = {name: value[rows] if value.ndim else value for name, value in context.items()}
        with autocast(self.ranks.device, self.settings.precision):
            return self.forward(batch.images[rows], batch.labels[rows], sliced_targets, sliced_context)

    def context(self, batch: Batch) -> Context:
        """What losses may need besides the teacher; see `losses.base.Input`."""
        inputs = {need for term in self.distiller.terms for need in term.loss.inputs}
        step, device = self.progress.step, self.ranks.device
        context: Context = {"index": batch.indices} if "index" in inputs else {}
        if "epoch" in inputs:
            context["epoch"] = torch.full((), step / self.loader.steps, device=device)
        if "progress" in inputs:
            context["progress"] = torch.full((), step / self.steps, device=device)
        if "seed" in inputs:
            context["seed"] = torch.full((), _seed(self.seed, step), dtype=torch.int64)
        return context

    def scaled(self, loss: Tensor, values: Mapping[str, Tensor], images: int) -> Tensor:
        """The value for backward: the gradients of ranks and accumulation steps then sum to that of the global batch.

        DDP averages gradients over ranks, and micro-batches may differ in size, so means over images get a factor. Relational terms
        see the global batch on every rank. A non-finite loss makes the result NaN, and with it every gradient.
        """
        terms, nan = self.distiller.terms, 0 * loss.detach()
        factor = images * self.ranks.world / self.images_in(self.progress.step) + nan
        if not any(term.loss.relational for term in terms):
            return loss * factor
        related = self.distiller.total(values, relational=True) * (1 + nan)
        if all(term.loss.relational for term in terms):
            return related
        return self.distiller.total(values, relational=False) * factor + related

    def amplified(self, loss: Tensor) -> Tensor:
        """With fp16 the loss times the scale, so that small gradients do not vanish; else the loss."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def metrics(self, logits: Tensor, labels: Tensor, loss: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over these images; the log holds their means over the training images. Add a metric here only."""
        images = len(labels)
        labels = labels.argmax(1) if labels.ndim == 2 else labels  # of a mixed image: its larger class
        hits = (logits.detach().argmax(1) == labels).sum()
        sums = {"loss": images * loss.detach().double(), "top1": 100 * hits.double()}
        return sums | {f"terms/{name}": images * value.detach().double() for name, value in values.items()}

    @property
    def to_compile(self) -> bool:
        """Whether the next step is the first of this start with a full batch, and compilation is enabled."""
        return self.forward.undecided and self.images_in(self.progress.step) == self.images_in(0)

    def compile_once(self, batch: Batch) -> bool:
        """On the first full batch of a start, compile the step if enabled; returns whether it was tried."""
        if not self.to_compile:
            return False
        rows = self.micro_batches(len(batch.labels))[0]

        def attempt() -> tuple[Tensor, list[Tensor]]:
            buffers, parameters = list(self.distiller.buffers()), list(self.distiller.parameters())
            before = [buffer.clone() for buffer in buffers]
            seed_draws(0)
            try:
                loss = self.distiller.total(self.run(batch, rows, self.source(batch), self.context(batch))[1])
                self.amplified(loss).backward()
                return loss.detach(), [p.grad.clone() for p in parameters if p.grad is not None]
            finally:
                for p in parameters:
                    p.grad = None
                for buffer, old in zip(buffers, before, strict=True):
                    buffer.copy_(old)

        size = rows.stop - rows.start
        self.forward.choose(attempt, size, self.settings.precision, partial(self.source.compile, len(batch.labels)))
        if not self.forward.chosen:
            self.source.compile(0)
        return True

    def check_ranks(self) -> None:
        """After the first step of a start: checks that several ranks can train this as one process does.

        Raises:
            ValueError: a parameter has no gradient, or a loss has written other values into its buffers on other ranks.
        """
        self.checked = True
        unused = [name for name, p in self.distiller.named_parameters() if p.requires_grad and p.grad is None]
        if unused and any(term.loss.on_logits for term in self.distiller.terms):
            raise ValueError(
                f"{', '.join(name.removeprefix('student.') for name in unused[:3])}: no gradient reaches this parameter, so "
                "several ranks cannot train it: set its requires_grad to False or take it out of the model, or use one process"
            )
        for key, loss in self.distiller.losses.items():
            if name := self._unequal_buffer(loss):
                raise ValueError(
                    f"loss.{key.split(':')[0]}: its buffer {name} differs between ranks, since each sees other images; "
                    "declare relational = True in its class, so that every rank sees the global batch, or use one process"
                )
        if name := self._unequal_buffer(self.distiller.student):
            raise ValueError(
                f"model: its buffer {name} differs between ranks, since each sees other images, and checkpoints hold that of one; "
                "use one process"
            )

    def _unequal_buffer(self, module: nn.Module) -> str | None:
        """The first buffer that is not the same on every rank; the statistics of batch normalisation are left out."""
        norms = {
            name for name, submodule in module.named_modules() if isinstance(submodule, nn.modules.batchnorm._BatchNorm)
        }
        for name, buffer in module.named_buffers():
            if name.rpartition(".")[0] not in norms and not self.ranks.equal(buffer):
                return name
        return None

    def images_in(self, step: int) -> int:
        """Images of the global batch of a step; the last batch of an epoch may be smaller."""
        first = step % self.loader.steps * self.loader.batch_size
        return min(self.loader.batch_size, self.loader.num_images - first)

    def micro_batches(self, images: int) -> list[slice]:
        """This rank's images of a step in `trainer.accumulate` accumulation steps; fewer, on all ranks, if a rank has fewer."""
        count = min(self.settings.accumulate, self.images_in(self.progress.step) // self.ranks.world) or 1
        return [slice(images * i // count, images * (i + 1) // count) for i in range(count)]

    def exchange_gradients(self, last: bool) -> AbstractContextManager[None]:
        """Several ranks exchange gradients once a step, in its last backward pass."""
        if last or not isinstance(self.replicas, DistributedDataParallel):
            return nullcontext()
        return self.replicas.no_sync()

    def window(self) -> dict[str, Any]:
        """Means since the last call, over all ranks: the content of a log line. The only host sync of the loop.

        Raises:
            FloatingPointError: at the first non-finite step, with its number and the terms at fault.
        """
        counts, means = self.meter.read()
        self.progress.skipped += int(counts["skipped"])
        if counts["skipped"] and self.meter.any_fault():
            raise FloatingPointError(self.fault())
        self.meter.forget()
        terms = {name.removeprefix("terms/"): v for name, v in means.items() if name.startswith("terms/")}
        return {
            **{name: value for name, value in means.items() if not name.startswith("terms/")},
            "terms": terms,
            "weighted": {term.name: term.weight * terms[term.name] for term in self.distiller.terms if terms},
            "lr": self.optimizer.param_groups[0]["lr"],
            "skipped": self.progress.skipped,
        }

    def check_finite(self) -> None:
        """A host sync.

        Raises:
            FloatingPointError: as `window` would.
        """
        if self.meter.any_fault():
            raise FloatingPointError(self.fault())

    def fault(self) -> str:
        """The first non-finite step since the last log line, and the terms that were not finite on any rank."""
        step, names = self.meter.fault()
        at_fault = [name.removeprefix("terms/") for name in names if name.startswith("terms/")]
        return (
            f"step {step}: the loss or its gradient is not finite; "
            f"terms not finite: {', '.join(at_fault) or 'none, so the backward pass'}"
        )

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, equal on every rank. A collective call."""
        state = {
            "progress": asdict(self.progress),
            "distiller": self.distiller.state_dict(),
            "unsaved_buffers": self.unsaved_buffers(),
            "optimizer": self.optimizer.state_dict(),
            "compiled": self.forward.chosen,
            "meter": self.meter.state(),
        }
        if self.scaler is not None:
            state["scaler"] = self.scaler.state()
        return state if self.average is None else state | {"ema": self.average.values}

    def unsaved_buffers(self) -> dict[str, Tensor]:
        """The buffers that a state dict leaves out (`persistent=False`): a step may still depend on them."""
        saved = self.distiller.state_dict()
        return {name: buffer for name, buffer in self.distiller.named_buffers() if name not in saved}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a `state()` of as many ranks."""
        self.progress = Progress(**state["progress"])
        self.distiller.load_state_dict(state["distiller"])
        buffers = self.unsaved_buffers()
        saved_buffers = state.get("unsaved_buffers", buffers)  # checkpoints of earlier versions have none
        if buffers.keys() != saved_buffers.keys():
            raise ValueError(f"buffers {sorted(saved_buffers)} there, {sorted(buffers)} now")
        for name, buffer in buffers.items():
            buffer.copy_(saved_buffers[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.forward.chosen = state["compiled"]
        self.meter.load_state(state["meter"])
        if self.scaler is not None:
            self.scaler.load_state(state["scaler"])
        if self.average is not None:
            self.average.load(state["ema"])


def _seed(*numbers: int) -> int:
    """A seed derived from these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
