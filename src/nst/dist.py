"""One process or several: rank, world size, and collective operations."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nst.config import differences

ALIVE_SECONDS = 2.0  # seconds in which ranks that have lost another one report to be alive
RENDEZVOUS_SECONDS = 30.0  # timeout of reaching torchrun's store; torch retries once, after a pause of about as long
GONE = ("closed by peer", "reset by peer", "Broken pipe", "remote process")  # what errors of a lost connection say

_groups = count()  # process groups this process has joined so far


@dataclass(frozen=True)
class Dist:
    """This process among its peers. With one process every method is a no-op."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Only this rank writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on every rank."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, *numbers: int) -> list[int]:
        """Each number's largest value on any rank, on every rank."""
        if self.world == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def stack(self, local: Tensor) -> Tensor:
        """The tensors of all ranks, on every rank: `[ranks, ...]`."""
        if self.world == 1:
            return local[None]
        tensors = [torch.zeros_like(local) for _ in range(self.world)]
        dist.all_gather(tensors, local)
        return torch.stack(tensors)

    def join(self, rows: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """The rows of all ranks, `[n, ...]` with another n on each, on every rank; `sizes`: the n of each, if they are known."""
        sizes = sizes or self.stack(torch.tensor(len(rows), device=self.device)).tolist()
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        return torch.cat([part[:n] for part, n in zip(self.stack(padded), sizes, strict=True)])

    def check_same_settings(self, config: dict[str, Any]) -> None:
        """Raises ValueError, on every rank, for settings that differ from those of rank 0."""
        if self.world > 1:
            configs: list[Any] = [None] * self.world
            dist.all_gather_object(configs, config)
            for rank, other in enumerate(configs):
                if changed := differences(other, configs[0]):
                    changes = "; ".join(line.removesuffix(" now") for line in changed)
                    raise ValueError(f"rank {rank} was started with other settings than rank 0: {changes} here")

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank these tensors as rank 0 has them, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


class GatherRows(torch.autograd.Function):
    """The global batch `[total, ...]` from each rank's rows, in order. Every rank must compute the same loss on it.

    Backward gives each rank its own rows' gradient, times the number of ranks, since DDP averages.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Dist, total: int) -> Tensor:
        sizes = [total * (r + 1) // ranks.world - total * r // ranks.world for r in range(ranks.world)]
        ctx.rows, ctx.world = slice(sum(sizes[: ranks.rank]), sum(sizes[: ranks.rank + 1])), ranks.world
        return ranks.join(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.rows] * ctx.world, None, None


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context of autocast to "bf16" or "fp16" on a device; with "fp32" it does nothing."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


@contextmanager
def join(device: str, timeout: float = 600.0) -> Iterator[Dist]:
    """Join the process group that torchrun describes in the environment, if any; leave it at the end.

    Args:
        device: `auto`, `cpu` or `cuda`.
        timeout: seconds to wait for a rank before the run ends.

    Raises:
        ValueError: CUDA was requested and is not available.
        TimeoutError, ConnectionError: a rank did not answer, or is gone; names it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no CUDA device; auto uses the CPU then")
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(here)
        torch.backends.cudnn.deterministic = True  # two starts of one run take the same steps
    if "RANK" not in os.environ or dist.is_initialized():
        yield Dist(dist.get_rank(), dist.get_world_size(), here) if dist.is_initialized() else Dist(0, 1, here)
        return

    # torchrun runs already: it answers at once or never. It keeps one store over its restarts, and each job of a sweep joins a new
    # group: a prefix of its own keeps the addresses of ended processes from being found.
    c10d: Any = dist
    restart, limit = os.environ.get("TORCHELASTIC_RESTART_COUNT"), timedelta(seconds=timeout)
    patience = limit if restart is None else timedelta(seconds=RENDEZVOUS_SECONDS)
    store, rank, world = next(iter(c10d.rendezvous("env://", timeout=patience)))
    store.set_timeout(limit)
    store, gpu = c10d.PrefixStore(f"nst/{restart or 0}/{next(_groups)}", store), here if cuda else None
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit, device_id=gpu)
    try:
        yield Dist(rank, world, here)
    except RuntimeError as error:
        late, gone = "imed out" in str(error) or "imeout" in str(error), any(words in str(error) for words in GONE)
        if not late and not gone:
            raise
        lost = others = [other for other in range(world) if other != rank]
        with suppress(RuntimeError, ValueError):  # the process with the store has ended; a lost one does not report
            store.set(f"nst/lost/{rank}", "not me")
            time.sleep(ALIVE_SECONDS)
            lost = [other for other in others if not store.check([f"nst/lost/{other}"])] or others
        what = f"did not answer for {timeout:g} s (trainer.timeout)" if late else "is gone"
        hint = "stopped, killed, out of memory or cut off? The same command continues"
        raise (TimeoutError if late else ConnectionError)(
            f"rank {' or '.join(map(str, lost))} of {world} {what}: {hint}"
        ) from error
    # Not after an error: then other ranks may be waiting for this one, and only the end of its process tells them.
    dist.destroy_process_group()
    if not cuda:
        # DDP keeps the group alive: its threads may still have to free a tensor, for which they wait for the GIL. At interpreter
        # exit that would abort the process.
        time.sleep(0.2)


def should_report_error() -> bool:
    """Whether this process should report the error it ends with: only the first to fail does."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        me, store = str(dist.get_rank()), dist.distributed_c10d._get_default_store()
        try:
            return store.compare_set("nst/failed", "", me).decode() == me
        except RuntimeError:  # the process with the store has ended
            return True
    return os.environ.get("RANK", "0") == "0"  # before the ranks have joined a group, all fail with the same error
