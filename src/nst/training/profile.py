"""Where the time of a step goes: a torch profiler trace of a few steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import profile, schedule, tensorboard_trace_handler

SKIP, WARM_UP, TRACED = 3, 2, 5  # steps of a start: the first are slower than the rest


@contextmanager
def profiler(folder: Path | None) -> Iterator[Callable[[], None]]:
    """Trace some of the steps taken inside the block.

    Args:
        folder: the trace goes there, as `*.pt.trace.json`, for TensorBoard's profiler plugin or https://ui.perfetto.dev;
            None: no tracing.

    Yields:
        What to call after each step.
    """
    if folder is None:
        yield lambda: None
        return
    spec = schedule(wait=SKIP, warmup=WARM_UP, active=TRACED, repeat=1)
    with profile(schedule=spec, on_trace_ready=tensorboard_trace_handler(str(folder)), record_shapes=True) as trace:
        yield trace.step
