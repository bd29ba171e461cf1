"""Filling a store: every view it holds of every image, once through the teacher."""

import logging
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from torch import Tensor
from tqdm import tqdm

from nst.data.batch import Loader
from nst.distiller import Summaries
from nst.knowledge.layout import Array, readable_bytes
from nst.knowledge.live import LiveTeacher
from nst.knowledge.store import Store, Writer
from nst.trainer.signals import Interrupted, StopFlag, stop_flag

log = logging.getLogger(__name__)

COMPILE_COST = 60.0  # seconds that compiling a teacher takes on two cores, about
COMPILE_GAIN = 0.5  # of the eager time, about: frozen weights make a teacher twice as fast
TRY_AFTER = 4  # batches, to know how long the filling will take
TOLERANCE = 1e-2  # of a summary's largest value, between compiled and eager code; half precision rounds by 5e-4
SYNC_SECONDS = 10.0  # at most this much work is lost when filling is killed
IN_FLIGHT = 4  # batches between the teacher and the disk


def fill(
    store: Store,
    teacher: LiveTeacher,
    loader: Loader,
    subset: Tensor,
    wanted: Sequence[Array],
    may_compile: bool = False,
) -> None:
    """Complete the arrays `wanted`; what is written already stays.

    Args:
        teacher: its requests include those of the arrays.
        loader: over the whole training set, in one process.
        subset: [images, views] view numbers, from `split.view_subset`.
        may_compile: compile the teacher where the filling is long enough, and compiled and eager summaries agree.
            Not in float32: such a store is to equal eager live training bit for bit.

    Raises:
        ValueError: the disk is too small.
        Interrupted: stopped by a signal, saved.
    """
    with store.locked(), stop_flag() as flag:
        missing = store.missing(wanted)
        store.reserve(missing)
        for written in sorted({store.written(a.name) for a in missing}):
            group = [a for a in missing if store.written(a.name) == written]
            _fill_group(store, teacher, loader, subset, group, may_compile and store.dtype == "float16", flag)
    teacher.compile(0)


def _fill_group(
    store: Store,
    teacher: LiveTeacher,
    loader: Loader,
    subset: Tensor,
    group: Sequence[Array],
    may_compile: bool,
    flag: StopFlag,
) -> None:
    """Arrays that are equally far: one pass of the teacher for all of them."""
    start = store.written(group[0].name)
    pending: deque[Future[None]] = deque()
    row = start
    pace = 1 if sys.stderr.isatty() else 30  # seconds between two updates
    show = tqdm(
        total=store.rows, initial=start, unit=" images", unit_scale=True, desc="storing knowledge", mininterval=pace
    )
    with ExitStack() as stack:
        writers = {a.name: stack.enter_context(Writer(store, a.name, a.shape)) for a in group}
        disk = stack.enter_context(ThreadPoolExecutor(1))
        stack.enter_context(show)
        saved = began = time.monotonic()
        for slot in range(start // store.images, store.views):
            first = row % store.images // loader.batch_size
            row = slot * store.images + first * loader.batch_size
            for batch in loader.sweep(subset[:, slot], first):
                pending.append(disk.submit(_write, teacher(batch), row, group, writers))
                row += len(batch.labels)
                show.update(row - show.n)
                if may_compile and row - start >= TRY_AFTER * loader.batch_size:
                    left = (store.rows - row) * (time.monotonic() - began) / (row - start)
                    compile_if_long(teacher, batch.images, left)
                    may_compile = False
                if len(pending) > IN_FLIGHT:
                    pending.popleft().result()
                if time.monotonic() - saved > SYNC_SECONDS or row == store.rows or flag.signum:
                    _save(store, pending, writers, row)
                    saved = time.monotonic()
                if flag.signum:
                    raise Interrupted(flag.signum)


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


def _write(summaries: Summaries, row: int, group: Sequence[Array], writers: dict[str, Writer]) -> None:
    for array in group:
        writer = writers[array.name]
        value = summaries[array.request][array.tensor]
        writer.write(row, value.to(writer.dtype).cpu().numpy())


def _save(store: Store, pending: deque[Future[None]], writers: dict[str, Writer], row: int) -> None:
    """All that was computed goes to disk, then the manifest says so."""
    while pending:
        pending.popleft().result()
    for writer in writers.values():
        writer.sync()
    store.save(dict.fromkeys(writers, row))


def announce_sizes(store: Store, wanted: Sequence[Array]) -> str:
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
