"""One process or several: rank, world size, and collective operations."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nst.errors import differences

ROLL_CALL = 2.0  # seconds in which ranks that have lost another one report that they are alive
MEETING = 30.0  # seconds to reach the store of torchrun; torch tries again for as long after a pause of about that

_groups = count()  # process groups this process has joined so far


@dataclass(frozen=True)
class Ranks:
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

    def stack(self, mine: Tensor) -> Tensor:
        """The tensor of every rank, on every rank: `[ranks, ...]`."""
        if self.world == 1:
            return mine[None]
        every = [torch.zeros_like(mine) for _ in range(self.world)]
        dist.all_gather(every, mine)
        return torch.stack(every)

    def gather(self, *numbers: float) -> list[list[float]]:
        """The numbers of every rank, on every rank."""
        return self.stack(torch.tensor(numbers, device=self.device, dtype=torch.float64)).tolist()

    def equal(self, tensor: Tensor) -> bool:
        """Whether the tensor has the same values on every rank."""
        return bool((self.stack(tensor.detach().contiguous()) == tensor).all())

    def agree(self, config: dict[str, Any]) -> None:
        """Compare the ranks' settings.

        Raises:
            ValueError: on every rank, naming the keys that differ from those of rank 0.
        """
        if self.world == 1:
            return
        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, config)
        for rank, other in enumerate(every):
            if changed := differences(every[0], other):
                told = "; ".join(line.replace(" there, ", " on rank 0, ").replace(" now", "") for line in changed)
                raise ValueError(f"the ranks were started with different settings: {told} on rank {rank}")

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers (BN statistics) of rank 0."""
        self.share(module.buffers())

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank these tensors as rank 0 has them, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def report(self, step: int) -> None:
        """Publish this rank's step, for the message of another rank that stops waiting for it."""
        if self.world > 1:
            _store().set(f"nst/step/{self.rank}", str(step))


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; backward hands each its own rows' gradient, times the ranks, over which DDP then averages."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, ranks: Ranks, sizes: Sequence[int]) -> Tensor:
        ctx.rows = slice(sum(sizes[: ranks.rank]), sum(sizes[: ranks.rank + 1]))
        ctx.world = ranks.world
        padded = mine.new_zeros(max(sizes), *mine.shape[1:])
        padded[: len(mine)] = mine
        every = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(every, padded)
        return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.rows] * ctx.world, None, None


def gather_rows(mine: Tensor, ranks: Ranks, total: int) -> Tensor:
    """The global batch `[total, ...]` from each rank's rows, in order, with gradient. Every rank must use it alike."""
    bounds = [total * r // ranks.world for r in range(ranks.world + 1)]
    rows = _GatherRows.apply(mine, ranks, [end - start for start, end in pairwise(bounds)])
    assert isinstance(rows, Tensor)
    return rows


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


@contextmanager
def ranks(device: str, timeout: float = 600.0) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment, if any; leave it at the end.

    Args:
        device: `auto`, `cpu` or `cuda`.
        timeout: seconds after which a rank that does not answer ends the run.

    Raises:
        ValueError: CUDA was requested and is not available.
        TimeoutError: a rank did not answer; names it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no CUDA device; auto uses the CPU then")
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)
        torch.backends.cudnn.deterministic = True  # two starts of one run take the same steps
    where = torch.device("cuda", local) if cuda else torch.device("cpu")
    if "RANK" not in os.environ or dist.is_initialized():
        joined = dist.is_initialized()
        yield Ranks(dist.get_rank() if joined else 0, dist.get_world_size() if joined else 1, where)
        return
    here = _join(where, timedelta(seconds=timeout))
    try:
        yield here
    except RuntimeError as error:
        text = str(error)
        if "imed out" in text or "imeout" in text:
            raise TimeoutError(f"{_lost(here)} did not answer for {timeout:g} s{_CONTINUE}") from error
        if any(word in text for word in ("closed by peer", "reset by peer", "Broken pipe", "remote process")):
            raise ConnectionError(f"{_lost(here)} is gone{_CONTINUE}") from error
        raise
    # Not after an error: there the end of this process must be what tells the others, who may be waiting for it.
    dist.destroy_process_group()
    if not cuda:
        # DDP keeps the group alive, with threads that may still have a tensor to let go, for which they wait for Python's
        # lock: at the very end of the process they would abort it.
        time.sleep(0.2)


def _join(where: torch.device, timeout: timedelta) -> Ranks:
    c10d: Any = dist
    # torchrun is there already and answers at once, or never
    patience = timedelta(seconds=MEETING) if "TORCHELASTIC_RESTART_COUNT" in os.environ else timeout
    store, rank, world = next(iter(c10d.rendezvous("env://", timeout=patience)))
    store.set_timeout(timeout)
    # The jobs of a sweep join one group after the other. And torchrun keeps one store over its restarts: the addresses
    # that dead processes have left there must not be found.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = c10d.PrefixStore(f"nst/{restart}/{next(_groups)}", store)
    cuda = where.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo", store=own, rank=rank, world_size=world, timeout=timeout,
        device_id=where if cuda else None,
    )  # fmt: skip
    return Ranks(dist.get_rank(), dist.get_world_size(), where)


_CONTINUE = (
    ": stopped, killed, out of memory or cut off? The same command continues from the last checkpoint; trainer.timeout sets how "
    "long ranks wait"
)


def _lost(here: Ranks) -> str:
    """The lost ranks, which do not get here soon as all others do, and their last step."""
    others = [rank for rank in range(here.world) if rank != here.rank]
    lost, step = others, ""
    with suppress(RuntimeError, ValueError):  # the store went with its process
        store = _store()
        store.set(f"nst/lost/{here.rank}", "not me")
        time.sleep(ROLL_CALL)
        lost = [rank for rank in others if not store.check([f"nst/lost/{rank}"])] or others
        steps = [int(store.get(key)) for rank in lost if store.check([key := f"nst/step/{rank}"])]
        step = f" (last heard of at step {min(steps)})" if steps else ""
    return f"rank {' or '.join(map(str, lost))} of {here.world}{step}"


def should_report_error() -> bool:
    """Whether this process should report the error it ends with: only the first to fail does."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        me = str(dist.get_rank())
        try:
            return _store().compare_set("nst/failed", "", me).decode() == me
        except RuntimeError:  # the store went with its process
            return True
    return os.environ.get("RANK", "0") == "0"  # before the ranks met, all of them fail alike
