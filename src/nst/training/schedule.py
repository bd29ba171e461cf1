"""Learning rate as a function of the step: no state, so nothing to save or resume.

Every schedule takes `warmup`, the fraction of the run over which the rate first rises linearly.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol


class Schedule(Protocol):
    """Interface of the group `schedule`."""

    def __call__(self, lr: float, step: int, steps: int) -> float:
        """The rate for step `step` (0-based) of a run of `steps` steps, from the optimizer's own rate `lr`."""
        ...


class Warmup:
    """A linear rise up to `lr`, then `after`."""

    def __init__(self, warmup: float = 0.0) -> None:
        """Raises ValueError unless 0 <= warmup < 1."""
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is {warmup}; a fraction of the run, 0 <= warmup < 1, is needed")
        self.warmup = warmup

    def __call__(self, lr: float, step: int, steps: int) -> float:
        """See `Schedule`."""
        done = step / steps
        if done < self.warmup:
            return lr * (step + 1) / (math.ceil(self.warmup * steps) + 1)
        return self.after(lr, done)

    def after(self, lr: float, done: float) -> float:
        """The rate after the rise; `done` is the fraction of the run."""
        return lr


class Constant(Warmup):
    """The optimizer's own rate to the end."""


class Step(Warmup):
    """`lr · gamma^(milestones passed)`."""

    def __init__(self, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1, warmup: float = 0.0) -> None:
        """Milestones are fractions of the run, so that a shorter run has the same shape of schedule.

        Raises:
            ValueError: a milestone outside 0 … 1, a factor that is not in 0 … 1.
        """
        super().__init__(warmup)
        if any(not 0 < m < 1 for m in milestones):
            raise ValueError(
                f"milestones are {list(milestones)}; fractions of the run, each between 0 and 1, are needed "
                "(for epochs 100 and 150 of 200 write [0.5,0.75])"
            )
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma is {gamma}; a factor above 0 and up to 1 is needed")
        self.milestones, self.gamma = sorted(milestones), gamma

    def after(self, lr: float, done: float) -> float:
        """See `Warmup`."""
        return lr * self.gamma ** bisect_right(self.milestones, done)


class Cosine(Warmup):
    """Half a cosine from `lr` to 0."""

    def after(self, lr: float, done: float) -> float:
        """See `Warmup`."""
        position = (done - self.warmup) / (1 - self.warmup)
        return lr * 0.5 * (1 + math.cos(math.pi * position))


class OneCycle(Warmup):
    """Linear up to `lr` at `warmup`, linear down to 0 at the end: strong for short runs."""

    def __init__(self, warmup: float = 0.2) -> None:
        super().__init__(warmup)

    def after(self, lr: float, done: float) -> float:
        """See `Warmup`."""
        position = (done - self.warmup) / (1 - self.warmup)
        return lr * (1 - position)
