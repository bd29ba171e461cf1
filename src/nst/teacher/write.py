"""Filling a store: every view it holds of every image, once through the teacher."""

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from nst.data.batch import Batch, Loader
from nst.distiller import Summaries
from nst.teacher.cache import TeacherCache, Writer
from nst.teacher.layout import Array, readable_bytes
from nst.teacher.live import LiveTeacher

log = logging.getLogger(__name__)

COMPILE_COST = 60.0  # seconds that compiling a teacher takes on two cores, about
COMPILE_GAIN = 0.5  # of the eager time, about: frozen weights make a teacher twice as fast
TRY_AFTER = 4  # batches, to know how long the filling will take
TOLERANCE = 1e-2  # of a summary's largest value, between compiled and eager code; half precision rounds by 5e-4
SYNC_SECONDS = 10.0  # at most this much work is lost when filling is killed
IN_FLIGHT = 4  # batches between the teacher and the disk


class Stop(Protocol):
    """A wish to stop before the end; what was computed is saved first."""

    def asked(self) -> bool:
        """Whether this process is to stop: asked after each batch."""
        ...

    def check(self) -> object:
        """Raises where any process is to stop: called every few seconds, after saving."""
        ...


class Never:
    """No wish to stop."""

    def asked(self) -> bool:
        """No."""
        return False

    def check(self) -> None:
        """Nothing."""


NEVER = Never()


def fill(
    store: TeacherCache,
    teacher: LiveTeacher,
    loader: Loader,
    subset: Tensor,
    wanted: Sequence[Array],
    may_compile: bool = False,
    stop: Stop = NEVER,
) -> None:
    """Complete the arrays `wanted`; what is written already stays.

    Args:
        teacher: its requests include those of the arrays.
        loader: over the whole training set, in one process.
        subset: [images, views] view numbers, from `split.view_subset`.
        may_compile: compile the teacher where the filling is long enough, and compiled and eager summaries agree.
            Not in float32: such a store is to equal eager live training bit for bit.
        stop: asked after each batch, and while another process fills the store.

    Raises:
        ValueError: the disk is too small.
    """
    with store.locked(stop.check):
        missing = store.missing(wanted)
        store.reserve(missing)
        for written in sorted({store.written(a.name) for a in missing}):
            group = [a for a in missing if store.written(a.name) == written]
            filling = Filling(store, teacher, loader, subset, group, stop)
            filling.run(may_compile and store.dtype == "float16")
    teacher.compile(0)


class Filling:
    """Arrays that are equally far: one pass of the teacher for all of them."""

    def __init__(
        self,
        store: TeacherCache,
        teacher: LiveTeacher,
        loader: Loader,
        subset: Tensor,
        group: Sequence[Array],
        stop: Stop,
    ) -> None:
        """See `fill`."""
        self.store, self.teacher, self.loader, self.subset, self.group = store, teacher, loader, subset, group
        self.stop = stop
        self.start = store.written(group[0].name)
        self.pending: deque[Future[None]] = deque()
        self.writers: dict[str, Writer] = {}

    def run(self, may_compile: bool) -> None:
        """Fill to the end, saving every few seconds."""
        store, row = self.store, self.start
        pace = 1 if sys.stderr.isatty() else 30  # seconds between two updates
        show = tqdm(
            total=store.rows, initial=row, unit=" views", unit_scale=True, desc="storing knowledge", mininterval=pace
        )
        with ExitStack() as stack:
            self.writers = {a.name: stack.enter_context(Writer(store, a.name, a.shape)) for a in self.group}
            disk = stack.enter_context(ThreadPoolExecutor(1))
            stack.enter_context(show)
            saved = began = time.monotonic()
            for row, batch in self.batches():
                self.pending.append(disk.submit(self.write, self.teacher(batch), row))
                end = row + len(batch.labels)
                show.update(end - show.n)
                if may_compile and end - self.start >= TRY_AFTER * self.loader.batch_size:
                    left = (store.rows - end) * (time.monotonic() - began) / (end - self.start)
                    compile_if_long(self.teacher, batch.images, left)
                    may_compile = False
                if len(self.pending) > IN_FLIGHT:
                    self.pending.popleft().result()
                if time.monotonic() - saved > SYNC_SECONDS or end == store.rows or self.stop.asked():
                    self.save(end)
                    saved = time.monotonic()
                    self.stop.check()

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """What is left, by views: the row of the first image, and the images."""
        images, size = self.store.images, self.loader.batch_size
        first = self.start % images // size
        for slot in range(self.start // images, self.store.views):
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
            writer.write(row, value.to(writer.dtype).cpu().numpy())

    def save(self, row: int) -> None:
        """All that was computed goes to disk, then the manifest says so."""
        while self.pending:
            self.pending.popleft().result()
        for writer in self.writers.values():
            writer.sync()
        self.store.save(dict.fromkeys(self.writers, row))


def compile_if_long(teacher: LiveTeacher, images: Tensor, seconds: float) -> None:
    """Compile the teacher for batches like this one where `seconds` of eager filling are left; keep it if it agrees."""
    if seconds * COMPILE_GAIN < COMPILE_COST:
        return
    eager, trouble = teacher.summaries(images), None
    try:
        teacher.compile(len(images))
        compiled = teacher.summaries(images)
        for key, name in ((key, name) for key, summary in eager.items() for name in summary):
            difference = float((compiled[key][name] - eager[key][name]).abs().max() / eager[key][name].abs().max())
            if not difference <= TOLERANCE:
                trouble = f"its summary {key} {name} differs by {difference:.1e} of the largest value"
    except Exception as error:  # no C++ compiler, an operator that does not compile, …: all of them end in eager
        trouble = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
    if trouble is not None:
        log.warning("the teacher is not compiled: %s", trouble)
        teacher.compile(0)


def describe_sizes(store: TeacherCache, wanted: Sequence[Array]) -> str:
    """What a store will hold and how much of it is missing, for the terminal."""
    once = {a.name: a for a in wanted}.values()
    lines = [f"knowledge store {store.folder}: {store.views} views of {store.images:,} images, {store.dtype}"]
    for array in once:
        state = "complete" if store.written(array.name) == store.rows else "to be computed"
        if 0 < store.written(array.name) < store.rows:
            state = f"{100 * store.written(array.name) / store.rows:.0f} % there"
        lines.append(f"  {array.name}: {readable_bytes(store.bytes(array.shape))}, {state}")
    total = sum(store.bytes(a.shape) for a in once)
    return "\n".join([*lines, f"  together {readable_bytes(total)}"])
