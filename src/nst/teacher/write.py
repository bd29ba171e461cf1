"""Writing a teacher cache: every view it holds of every image, once through the teacher."""

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from nst.data.batch import Batch, Loader
from nst.distiller import Summaries
from nst.teacher.cache import TeacherCache, Writer
from nst.teacher.layout import Array, readable_bytes
from nst.teacher.live import LiveTeacher

log = logging.getLogger(__name__)

TOLERANCE = 1e-2  # of a summary's largest value, between compiled and eager code; half precision rounds by 5e-4
SYNC_SECONDS = 10.0  # at most this much work is lost when writing is killed
IN_FLIGHT = 4  # batches between the teacher and the disk


class Stop(Protocol):
    """A wish to stop before the end; what was computed is saved first."""

    @property
    def main(self) -> bool: ...  # whether this process holds the lock, and the others wait for it

    def asked(self) -> bool:
        """Whether this process is to stop: asked after each batch."""
        ...

    def check(self, done: bool = False) -> object:
        """Raises where any process is to stop: called every few seconds, after saving. The main process says when it is done."""
        ...

    def wait(self) -> None:
        """Return when the main process is done. Raises where any process is to stop."""
        ...


class Never:
    """No wish to stop, in a single process."""

    main = True

    def asked(self) -> bool:
        """No."""
        return False

    def check(self, done: bool = False) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing."""


NEVER = Never()


@contextmanager
def locked_together(cache: TeacherCache, stop: Stop) -> Iterator[None]:
    """The main process locks the cache for the block, the others begin it then; all have read the manifest anew."""
    with ExitStack() as stack:
        if stop.main:
            stack.enter_context(cache.locked(stop.check))
            stop.check(done=True)
        else:
            stop.wait()
            cache.reload()
        yield


def write_cache(
    cache: TeacherCache,
    teacher: LiveTeacher,
    loader: Loader,
    subset: Tensor,
    wanted: Sequence[Array],
    compile: bool = False,
    stop: Stop = NEVER,
) -> None:
    """Complete the arrays `wanted`; what is written already stays.

    Args:
        teacher: its requests include those of the arrays.
        loader: over the whole training set, in one process.
        subset: [images, views] view numbers, from `split.view_subset`.
        compile: compile the teacher if compiled and eager summaries agree. Not for float32: such a cache is to equal eager
            live training bit for bit.
        stop: asked after each batch, and while another process writes the cache.

    Raises:
        ValueError: the disk is too small.
    """
    with cache.locked(stop.check):
        missing = cache.missing(wanted)
        cache.reserve(missing)
        for written in sorted({cache.written(a.name) for a in missing}):
            group = [a for a in missing if cache.written(a.name) == written]
            writing = Writing(cache, teacher, loader, subset, group, stop)
            writing.run(compile and cache.dtype == "float16")
    teacher.compile(0)


class Writing:
    """Arrays that are equally far: one pass of the teacher for all of them."""

    def __init__(
        self,
        cache: TeacherCache,
        teacher: LiveTeacher,
        loader: Loader,
        subset: Tensor,
        group: Sequence[Array],
        stop: Stop,
    ) -> None:
        """See `write_cache`."""
        self.cache, self.teacher, self.loader, self.subset, self.group = cache, teacher, loader, subset, group
        self.stop = stop
        self.start = cache.written(group[0].name)
        self.pending: deque[Future[None]] = deque()
        self.writers: dict[str, Writer] = {}

    def run(self, compile: bool) -> None:
        """Write to the end, saving every few seconds."""
        cache, row = self.cache, self.start
        pace = 1 if sys.stderr.isatty() else 30  # seconds between two updates
        show = tqdm(
            total=cache.rows,
            initial=row,
            unit=" views",
            unit_scale=True,
            desc="writing the teacher cache",
            mininterval=pace,
        )
        with ExitStack() as stack:
            self.writers = {a.name: stack.enter_context(Writer(cache, a.name, a.shape)) for a in self.group}
            disk = stack.enter_context(ThreadPoolExecutor(1))
            stack.enter_context(show)
            saved = time.monotonic()
            for row, batch in self.batches():
                if compile:
                    compile_if_sound(self.teacher, batch.images)
                    compile = False
                self.pending.append(disk.submit(self.write, self.teacher(batch), row))
                end = row + len(batch.labels)
                show.update(end - show.n)
                if len(self.pending) > IN_FLIGHT:
                    self.pending.popleft().result()
                if time.monotonic() - saved > SYNC_SECONDS or end == cache.rows or self.stop.asked():
                    self.save(end)
                    saved = time.monotonic()
                    self.stop.check()

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """What is left, by views: the row of the first image, and the images."""
        images, size = self.cache.images, self.loader.batch_size
        first = self.start % images // size
        for slot in range(self.start // images, self.cache.views):
            row = slot * images + first * size
            for batch in self.loader.sequential(self.subset[:, slot], first):
                yield row, batch
                row += len(batch.labels)
            first = 0

    def write(self, summaries: Summaries, row: int) -> None:
        """A batch's summaries, on another thread."""
        for array in self.group:
            writer = self.writers[array.name]
            value = summaries[array.request][array.tensor]
            if value.shape[1:] != array.shape:
                raise ValueError(
                    f"loss.{array.request.split(':')[0]}: its summarize gives {array.tensor!r} of shape {tuple(value.shape[1:])} an image, "
                    f"its plan says {array.shape}; what relates images belongs into forward"
                )
            writer.write(row, value.to(writer.dtype).cpu().numpy())

    def save(self, row: int) -> None:
        """All that was computed goes to disk, then the manifest says so."""
        while self.pending:
            self.pending.popleft().result()
        for writer in self.writers.values():
            writer.sync()
        self.cache.save(dict.fromkeys(self.writers, row))


def compile_if_sound(teacher: LiveTeacher, images: Tensor) -> None:
    """Compile the teacher for batches like this one; keep it if it says what eager code says."""
    eager, reason = teacher.summaries(images), None
    try:
        teacher.compile(len(images))
        compiled = teacher.summaries(images)
        for key, name in ((key, name) for key, summary in eager.items() for name in summary):
            difference = float((compiled[key][name] - eager[key][name]).abs().max() / eager[key][name].abs().max())
            if not difference <= TOLERANCE:
                reason = f"its summary {key} {name} differs by {difference:.1e} of the largest value"
    except Exception as error:  # no C++ compiler, an operator that does not compile, …: all of them end in eager
        reason = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
    if reason is not None:
        log.warning("the teacher is not compiled: %s", reason)
        teacher.compile(0)


def describe_sizes(cache: TeacherCache, wanted: Sequence[Array]) -> str:
    """What a cache will hold and how much of it is missing, for the terminal."""
    once = {a.name: a for a in wanted}.values()
    lines = [f"teacher cache {cache.folder}: {cache.views} views of {cache.images:,} images, {cache.dtype}"]
    for array in once:
        state = "complete" if cache.written(array.name) == cache.rows else "to be computed"
        if 0 < cache.written(array.name) < cache.rows:
            state = f"{100 * cache.written(array.name) / cache.rows:.0f} % there"
        lines.append(f"  {array.name}: {readable_bytes(cache.bytes(array.shape))}, {state}")
    total = sum(cache.bytes(a.shape) for a in once)
    return "\n".join([*lines, f"  together {readable_bytes(total)}"])
