"""Writing a teacher cache: every view it holds of every image, once through the teacher, by one process or several."""

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nst.data.batch import Batch, Loader
from nst.distiller import Targets
from nst.teacher.cache import TeacherCache, Writer
from nst.teacher.layout import Array, readable_bytes
from nst.teacher.live import LiveTeacher

log = logging.getLogger(__name__)

TOLERANCE = 1e-2  # of a target's largest value, between compiled and eager code; half precision rounds by 5e-4
SYNC_SECONDS = 10.0  # at most this much work is lost when writing is killed
ASK_ROUNDS = 8  # with several ranks: rounds, of a batch each, between two exchanges
ROWS_TOLERANCE = 0.1  # likewise, between a cache and its teacher; bfloat16 differs by a few percent between machines
IN_FLIGHT = 4  # batches between the teacher and the disk


class Peers(Protocol):
    """The processes that write one cache together, and their stop signals. What is collective, all of them call alike."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...

    def stop_requested(self) -> bool:
        """Whether this process has a stop signal."""
        ...

    def any(self, mine: bool) -> bool:
        """Whether `mine` is true on any rank. Collective: returns when all ranks have called it."""
        ...

    def check(self, done: bool = False) -> object:
        """Raises where any process has a stop signal. Collective; rank 0 says whether what the others `wait` for is done."""
        ...

    def wait(self) -> None:
        """On the other ranks: `check` until rank 0 is done."""
        ...


class Alone:
    """A single process without stop signals."""

    rank, world = 0, 1

    def stop_requested(self) -> bool:
        """No."""
        return False

    def any(self, mine: bool) -> bool:
        """What it is here."""
        return mine

    def check(self, done: bool = False) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing."""


ALONE = Alone()


@contextmanager
def locked_together(cache: TeacherCache, peers: Peers) -> Iterator[None]:
    """Rank 0 locks the cache for the block, which all begin then; all have read the manifest anew."""
    with ExitStack() as stack:
        if peers.rank == 0:
            stack.enter_context(cache.locked(peers.check))
            peers.check(done=True)
        else:
            peers.wait()
            cache.reload()
        yield


def write_cache(
    cache: TeacherCache,
    teacher: LiveTeacher,
    loader: Loader,
    subset: Tensor,
    needed: Sequence[Array],
    compile: bool = False,
    peers: Peers = ALONE,
) -> None:
    """Complete the arrays `needed`; what is written already stays.

    Several ranks share the batches. Each batch is the one that a single process would make, so the files do not depend on the
    number of ranks, and another number of them may continue. Rank 0 writes the manifest, after the rows of all ranks.

    Args:
        teacher: its target_specs include those of the arrays.
        loader: over the whole training set, the same on each rank: of world size 1.
        subset: [images, views] view numbers, from `split.view_subset`.
        compile: compile the teacher if compiled and eager targets agree. Not for float32: such a cache is to equal eager
            live training bit for bit.
        peers: the processes that write together, all of which see the folder.

    Raises:
        ValueError: the disk is too small; a target is not finite in the cache's dtype.
    """
    with locked_together(cache, peers):
        missing = cache.missing(needed)
        written = {array.name: cache.written(array.name) for array in missing}
        if peers.rank == 0 and missing:
            cache.reserve(missing)
            cache.save(written)  # the other ranks learn of the files by it
        peers.any(False)
        cache.reload()
        for start in sorted(set(written.values())):
            group = [a for a in missing if written[a.name] == start]
            Writing(cache, teacher, loader, subset, group, peers).run(compile and cache.dtype == "float16")
            peers.any(False)
            cache.reload()
    teacher.compile(0)


class Writing:
    """Arrays of which equally many rows are written: one pass of the teacher for all of them.

    In a round each rank takes one batch. After it all rows up to the round's end are computed.
    """

    def __init__(
        self,
        cache: TeacherCache,
        teacher: LiveTeacher,
        loader: Loader,
        subset: Tensor,
        group: Sequence[Array],
        peers: Peers,
    ) -> None:
        """See `write_cache`."""
        self.cache, self.teacher, self.loader, self.subset, self.group = cache, teacher, loader, subset, group
        self.peers = peers
        self.start = cache.written(group[0].name)
        self.pending: deque[Future[None]] = deque()
        self.writers: dict[str, Writer] = {}

    def run(self, compile: bool) -> None:
        """Write to the end, saving every few seconds."""
        cache, peers = self.cache, self.peers
        with ExitStack() as stack:
            self.writers = {a.name: stack.enter_context(Writer(cache, a.name, a.shape)) for a in self.group}
            disk = stack.enter_context(ThreadPoolExecutor(1))
            show = stack.enter_context(self.progress())
            saved = time.monotonic()
            for number, (row, batch, end) in enumerate(self.rounds()):
                if compile and number == 0:
                    self.compile(batch)
                if batch is not None:
                    self.pending.append(disk.submit(self.write, self.teacher(batch), row))
                if len(self.pending) > IN_FLIGHT:
                    self.pending.popleft().result()
                show.update(end - show.n)
                if number % (1 if peers.world == 1 else ASK_ROUNDS) and end < cache.rows:
                    continue
                if peers.any(end == cache.rows or time.monotonic() - saved > SYNC_SECONDS or peers.stop_requested()):
                    self.save(end)
                    saved = time.monotonic()
                    peers.check()

    def progress(self) -> tqdm:
        """A bar over the rows; of rank 0 only."""
        return tqdm(
            total=self.cache.rows,
            initial=self.start,
            unit=" views",
            unit_scale=True,
            desc="writing the teacher cache",
            mininterval=1 if sys.stderr.isatty() else 30,  # seconds between two updates
            disable=self.peers.rank > 0,
        )

    def rounds(self) -> Iterator[tuple[int, Batch | None, int]]:
        """What is left, by views: the first row of this rank's batch, the batch (None: there is none left), the round's last row + 1."""
        images, size, steps = self.cache.images, self.loader.batch_size, self.loader.steps
        rank, world = self.peers.rank, self.peers.world
        first = self.start % images // size
        for slot in range(self.start // images, self.cache.views):
            own = self.loader.sequential(self.subset[:, slot], min(first + rank, steps), world)
            for step, batch in zip_longest(range(first, steps, world), own):
                row, end = (step + rank) * size, min((step + world) * size, images)
                yield slot * images + row, batch, slot * images + end
            first = 0

    def compile(self, batch: Batch | None) -> None:
        """Compile the teacher where that is sound on every rank."""
        reason = None if batch is None else try_compiled(self.teacher, batch.images)
        if self.peers.any(reason is not None):
            log.warning("the teacher is not compiled: %s", reason or "it is not sound on another rank")
            self.teacher.compile(0)

    def write(self, targets: Targets, row: int) -> None:
        """A batch's targets, on another thread."""
        for array in self.group:
            writer = self.writers[array.name]
            value = targets[array.spec][array.tensor]
            if value.shape[1:] != array.shape:
                raise ValueError(
                    f"loss.{array.spec.split(':')[0]}: its target gives {array.tensor!r} of shape {tuple(value.shape[1:])} an image, "
                    f"its plan says {array.shape}; what relates images belongs into forward"
                )
            stored = value.to(writer.dtype)
            if not torch.isfinite(stored).all():
                raise ValueError(not_finite(array, value))
            writer.write(row, stored.cpu().numpy())

    def save(self, row: int) -> None:
        """All that was computed goes to disk, on every rank, then the manifest counts the rows."""
        while self.pending:
            self.pending.popleft().result()
        for writer in self.writers.values():
            writer.sync()
        self.peers.any(False)
        if self.peers.rank == 0:
            self.cache.save(dict.fromkeys(self.writers, row))


def not_finite(array: Array, value: Tensor) -> str:
    """What to do about a target that the cache's dtype cannot hold."""
    term = f"loss.{array.spec.split(':')[0]}: its target {array.name}"
    if torch.isfinite(value).all():
        return (
            f"{term} has values up to {value.abs().max():.3g}, more than float16 can hold (65,504); "
            "use cache.dtype=float32 or cache.views=0"
        )
    return (
        f"{term} has values that are not finite: the teacher itself gives them; check teacher.weights, teacher.precision and "
        "teacher.mean and teacher.std"
    )


def try_compiled(teacher: LiveTeacher, images: Tensor) -> str | None:
    """Compile the teacher for batches like this one; returns why not to keep that, None where it agrees with eager code."""
    eager = teacher.targets(images)
    try:
        teacher.compile(len(images))
        compiled = teacher.targets(images)
        for key, name in ((key, name) for key, target in eager.items() for name in target):
            difference = float((compiled[key][name] - eager[key][name]).abs().max() / eager[key][name].abs().max())
            if not difference <= TOLERANCE:
                return f"its target {key} {name} differs by {difference:.1e} of the largest value"
    except Exception as error:  # no C++ compiler, an operator that does not compile, …: all of them end in eager
        return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
    return None


def check_rows(cache: TeacherCache, teacher: LiveTeacher, images: Tensor, needed: Sequence[Array]) -> None:
    """Compare the cached rows of the first images with what the teacher gives for them now.

    A cache's identity does not contain code: this finds one from before a change in the code of the network or of a loss.

    Args:
        teacher: its target_specs include those of the arrays.
        images: [B, C, H, W], the first training images in their first cached view.

    Raises:
        ValueError: they differ by more than rounding; names the array. Or the file is damaged.
    """
    count = len(images)
    written = [array for array in needed if cache.written(array.name) >= count]
    if not written:
        return
    targets = teacher.targets(images)
    for array in written:
        now = targets[array.spec][array.tensor].float().cpu()
        cached = torch.from_numpy(np.load(cache.file(array.name), mmap_mode="r")[0, :count].astype(np.float32))
        difference, largest = float((now - cached).abs().max()), float(now.abs().max())
        if difference <= ROWS_TOLERANCE * largest:
            continue
        if cache.written(array.name) >= cache.images:
            cache.check(array.name, 0, cache.digest(array.name, 0))
        raise ValueError(
            f"the teacher cache {cache.folder} is not of this teacher any more: {array.name} of the first {count} images differs by "
            f"up to {difference:.3g} (largest value: {largest:.3g}). If the code of the network or of loss.{array.spec.split(':')[0]} "
            "has changed, delete the folder to have it built again, or name another cache.path; weights that were trained with the "
            "network's old code stay as they are"
        )


def describe_sizes(cache: TeacherCache, needed: Sequence[Array]) -> str:
    """What a cache will hold and how much of it is missing, for the terminal."""
    once = {a.name: a for a in needed}.values()
    lines = [f"teacher cache {cache.folder}: {cache.views} views of {cache.images:,} images, {cache.dtype}"]
    for array in once:
        state = "complete" if cache.written(array.name) == cache.rows else "to be computed"
        if 0 < cache.written(array.name) < cache.rows:
            state = f"{100 * cache.written(array.name) / cache.rows:.0f} % there"
        lines.append(f"  {array.name}: {readable_bytes(cache.bytes(array.shape))}, {state}")
    total = sum(cache.bytes(a.shape) for a in once)
    return "\n".join([*lines, f"  together {readable_bytes(total)}"])
