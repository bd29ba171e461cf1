"""One process or many: who am I, and how do the ranks agree."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

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

    def gather(self, *numbers: float) -> list[list[float]]:
        """The numbers of every rank, on every rank."""
        if self.world == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, device=self.device, dtype=torch.float64)
        every = [torch.zeros_like(mine) for _ in range(self.world)]
        dist.all_gather(every, mine)
        return torch.stack(every).tolist()

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers (BN statistics) of rank 0."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment, if any; leave it at the end.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ValueError: CUDA asked for and not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.device=cuda, but torch finds no CUDA device; trainer.device=auto uses the CPU then")
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
    c10d: Any = dist
    store, rank, world = next(iter(c10d.rendezvous("env://")))
    # The jobs of a sweep join one group after the other. And torchrun keeps one store over its restarts: the addresses
    # that dead processes have left there must not be found.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = c10d.PrefixStore(f"nst/{restart}/{next(_groups)}", store)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, device_id=where if cuda else None)
    yield Ranks(dist.get_rank(), dist.get_world_size(), where)
    # Not after an error: there the end of this process must be what tells the others, who may be waiting for it.
    dist.destroy_process_group()
    if backend == "gloo":
        # DDP keeps the group alive, with threads that may still have a tensor to let go, for which they wait for Python's
        # lock: at the very end of the process they would abort it.
        time.sleep(0.2)


def should_report_error() -> bool:
    """Whether this process should report the error it ends with: the first to fail does, so it is told once."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        store: Any = dist.distributed_c10d._get_default_store()
        me = str(dist.get_rank())
        try:
            return store.compare_set("nst/failed", "", me).decode() == me
        except RuntimeError:  # the store went with its process
            return True
    return os.environ.get("RANK", "0") == "0"  # before the ranks met, all of them fail alike
