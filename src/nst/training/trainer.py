"""The training loop. `Trainer.step` is the whole of one step, from batch to updated weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nst.config import OptimConfig, TrainerConfig
from nst.data.batch import Batch, Loader
from nst.distiller import Distiller, Summaries
from nst.training.compiled import CompiledForward, cut
from nst.training.ranks import Ranks
from nst.training.schedule import learning_rate
from nst.training.sync_bn import sync_batch_norms

# What `Trainer.sums` adds up and `Trainer.first_bad` remembers; in both the value of each term follows.
SUMS = ("steps", "images", "correct", "loss", "norm", "skipped")
FIRST_BAD = ("step", "loss")
SKIPPED = SUMS.index("skipped")


@dataclass
class Progress:
    """Where a run is; all of it is in every checkpoint."""

    step: int = 0  # batches seen
    skipped: int = 0  # of them, without an update (non-finite gradient)
    epoch: int = 0  # epochs finished, evaluation included
    best_top1: float = 0.0
    best_epoch: int = 0
    seconds: float = 0.0  # spent so far, over all starts


class Trainer:
    """Trains a distiller on a loader with what the teacher knows."""

    def __init__(
        self,
        distiller: Distiller,
        knowledge: Callable[[Batch], Summaries],
        loader: Loader,
        *,
        optim: OptimConfig,
        settings: TrainerConfig,
        ranks: Ranks,
        seed: int,
        compile_knowledge: Callable[[int], None] | None = None,
    ) -> None:
        """Move the distiller to the ranks' device and make its optimizer; nothing is read or written yet.

        Args:
            compile_knowledge: compiles the teacher's side for a batch size (0: back to eager), where there is any.
        """
        self.distiller = distiller.to(ranks.device)
        if settings.sync_bn and ranks.world > 1:
            sync_batch_norms(distiller.student, ranks.device)
        if settings.channels_last:
            distiller.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.knowledge, self.loader = knowledge, loader
        self.optim, self.settings, self.ranks, self.seed = optim, settings, ranks, seed
        self.steps = settings.epochs * loader.steps
        self.progress = Progress()
        self.parameters = [p for p in distiller.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            self.parameters,
            lr=optim.lr,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            nesterov=optim.nesterov,
            fused=True,
        )
        if optim.momentum:  # made here because a first step that is skipped would leave them unwritten
            for p in self.parameters:
                self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        self.forward: nn.Module = distiller
        if ranks.world > 1:
            self.forward = DistributedDataParallel(
                distiller,
                device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
                # Without a term on the logits the last layer has no gradient.
                find_unused_parameters=not any(term.loss.on_logits for term in distiller.terms),
            )
            # BN does not read its statistics in training, and evaluation starts by sharing those of rank 0.
            self.forward.broadcast_buffers = False
        self.maybe_compiled = CompiledForward(
            self.forward, distiller, asked=settings.compile, precision=settings.precision, ranks=ranks,
            compile_knowledge=compile_knowledge, graphs=settings.accumulate == 1 and ranks.world == 1,
        )  # fmt: skip
        # On the device, since the last log line; zero while there was no step, or no non-finite one.
        self.sums = torch.zeros(len(SUMS) + len(distiller.terms), device=ranks.device, dtype=torch.float64)
        self.first_bad = torch.zeros(len(FIRST_BAD) + len(distiller.terms), device=ranks.device, dtype=torch.float64)
        self.one_skipped = torch.zeros_like(self.sums)  # what a step that is skipped adds
        self.one_skipped[SKIPPED] = 1

    def prepare(self, batch: Batch) -> bool:
        """Before the step on this batch, decide whether to compile, where that is due; True where it was."""
        step = self.progress.step
        due = self.maybe_compiled.undecided and self.images_in(step) == self.images_in(0)
        if due:
            part = self.micro_batches(len(batch.labels))[0]
            self.maybe_compiled.choose(batch, part, self.knowledge, self.steps - step)
        return due

    def step(self, batch: Batch) -> None:
        """One optimizer step on this rank's part of a global batch."""
        self.prepare(batch)
        step, ranks = self.progress.step, self.ranks
        parts = self.micro_batches(len(batch.labels))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optim, step, self.steps)
        torch.manual_seed(
            int(np.random.SeedSequence([self.seed, step, ranks.rank]).generate_state(1)[0])
        )  # for dropout

        # A step that is skipped must not leave its mark in the BN statistics either.
        buffers = list(self.distiller.buffers()) if self.settings.skip_nonfinite else []
        before = [buffer.clone() for buffer in buffers]
        summaries = self.knowledge(batch)
        sums = torch.zeros_like(self.first_bad)  # over this rank's images: correct ones, the loss, each term
        for part in parts:
            with self.exchange_gradients(part is parts[-1]):
                with torch.autocast(ranks.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                    logits, values = self.maybe_compiled(batch.images[part], batch.labels[part], cut(summaries, part))
                loss = self.distiller.total(values)
                # DDP averages gradients over ranks; the factor makes that the mean over images where the parts are
                # uneven. A loss that is not finite makes it NaN, and with it every gradient on every rank.
                images = part.stop - part.start
                (loss * (images * ranks.world / self.images_in(step) + 0 * loss.detach())).backward()
            hits = (logits.argmax(1) == batch.labels[part]).sum()
            sums += torch.stack([hits, *(images * value.detach().double() for value in (loss, *values.values()))])
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None], foreach=True)
        if self.settings.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip_grad_norm, norm, foreach=True)

        # A non-finite gradient (or loss) on any rank skips the update, on the device and without a host sync.
        bad = ~torch.isfinite(norm)
        self.optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(torch.where(bad, old, buffer))
        self.count(len(batch.labels), sums, norm, bad)
        self.progress.step += 1

    def images_in(self, step: int) -> int:
        """Images of the global batch of a step; the last batch of an epoch may be smaller."""
        first = step % self.loader.steps * self.loader.batch_size
        return min(self.loader.batch_size, self.loader.num_images - first)

    def micro_batches(self, images: int) -> list[slice]:
        """This rank's images of a step in `trainer.accumulate` parts; fewer, on all ranks, where a rank has fewer."""
        count = min(self.settings.accumulate, self.images_in(self.progress.step) // self.ranks.world) or 1
        return [slice(images * i // count, images * (i + 1) // count) for i in range(count)]

    def exchange_gradients(self, now: bool) -> AbstractContextManager[None]:
        """Several ranks exchange gradients once a step, in its last backward pass."""
        if now or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()

    def count(self, images: int, sums: Tensor, norm: Tensor, bad: Tensor) -> None:
        """Add a step to the sums of the next log line, and remember the first non-finite one; no host sync.

        Args:
            images: of this rank.
            sums: over them: correct ones, the loss, each term.
        """
        correct, *values = sums.unbind()  # the loss, each term
        one = torch.ones_like(correct)
        row = torch.stack([one, one * images, correct, values[0], norm.double(), 0 * one, *values[1:]])  # as in SUMS
        self.sums += torch.where(bad, self.one_skipped, row)
        first = bad & (self.first_bad[0] == 0)
        found = torch.stack([one * (self.progress.step + 1), *values])  # as in FIRST_BAD
        self.first_bad = torch.where(first, found, self.first_bad)

    def window(self) -> dict[str, Any]:
        """Means since the last call, over all ranks: what a log line holds. The only host sync of the loop.

        Raises:
            FloatingPointError: at the first non-finite step, with its number and the terms at fault, unless
                `trainer.skip_nonfinite` asks to go on without it.
        """
        sums = self.ranks.sum(self.sums).tolist()
        self.sums = torch.zeros_like(self.sums)
        steps, images, hits, loss, norm, skipped, *terms = sums
        self.progress.skipped += round(skipped / self.ranks.world)
        if skipped and not self.settings.skip_nonfinite:
            raise FloatingPointError(self.fault())
        self.first_bad = torch.zeros_like(self.first_bad)
        images = max(images, 1.0)
        names = [term.name for term in self.distiller.terms]
        return {
            "loss": loss / images,
            "top1": 100 * hits / images,
            "terms": {name: value / images for name, value in zip(names, terms, strict=True)},
            "grad_norm": norm / max(steps, 1.0),
            "lr": self.optimizer.param_groups[0]["lr"],
            "skipped": self.progress.skipped,
        }

    def check_finite(self) -> None:
        """A host sync.

        Raises:
            FloatingPointError: as `window` would.
        """
        if self.sums[SKIPPED].item() and not self.settings.skip_nonfinite:
            raise FloatingPointError(self.fault())

    def fault(self) -> str:
        """Which step since the last log line was the first non-finite one, and which terms were so on any rank."""
        bad = self.ranks.sum((~torch.isfinite(self.first_bad[len(FIRST_BAD) :])).double()).tolist()
        at_fault = [term.name for term, b in zip(self.distiller.terms, bad, strict=True) if b]
        return (
            f"step {int(self.first_bad[0])}: the loss or its gradient is not finite; "
            f"terms not finite: {', '.join(at_fault) or 'none, so the backward pass'}"
        )

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, the same on every rank but for the collective call itself."""
        mine = torch.cat([self.sums, self.first_bad])
        windows = [torch.zeros_like(mine) for _ in range(self.ranks.world)]
        if self.ranks.world > 1:
            dist.all_gather(windows, mine)
        else:
            windows = [mine]
        return {
            "progress": asdict(self.progress),
            "distiller": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "compiled": self.maybe_compiled.chosen,
            "windows": torch.stack(windows),  # what each rank has summed since the last log line
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state()` gave on as many ranks."""
        self.progress = Progress(**state["progress"])
        self.distiller.load_state_dict(state["distiller"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.maybe_compiled.chosen = state["compiled"]
        mine = state["windows"][self.ranks.rank].to(self.ranks.device)
        self.sums, self.first_bad = mine[: len(self.sums)].clone(), mine[len(self.sums) :].clone()
