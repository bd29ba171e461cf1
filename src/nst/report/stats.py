"""The statistics of the tables. Every figure is in percent; a sample is one value a seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Sample:
    """Mean, standard deviation (n − 1), half the width of the 95 % interval of the mean (None where n < 2), median."""

    n: int
    mean: float
    std: float | None
    half_width: float | None
    median: float


def sample(values: Sequence[float]) -> Sample:
    """Summarise values, one a seed. The interval is Student's t: mean ± t(0.975, n − 1) · std / √n.

    Raises:
        ValueError: no value.
    """
    if not values:
        raise ValueError("a sample needs at least one value")
    n, mean, median = len(values), float(np.mean(values)), float(np.median(values))
    if n == 1:
        return Sample(1, mean, None, None, median)
    std = float(np.std(values, ddof=1))
    return Sample(n, mean, std, float(stdtrit(n - 1, (1 + LEVEL) / 2)) * std / math.sqrt(n), median)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Sample | None:
    """Differences to the baseline over the seeds that both have; None if there are none."""
    shared = [seed for seed in values if seed in baseline]
    return sample([values[seed] - baseline[seed] for seed in shared]) if shared else None


def verdict(ours: Sample, published: float | None, lower_is_better: bool, hindrance: str | None = None) -> str:
    """The verdict on ours beside the published figure.

    "reproduced" when it lies in our 95 % interval; "better by x" or "short by x" when it does not. One seed has no
    interval, so no verdict but the difference.

    Args:
        hindrance: why the two cannot be compared ("reduced"), or None.
    """
    if published is None:
        return "nothing published"
    if hindrance is not None:
        return f"not comparable: {hindrance}"
    short = ours.mean - published if lower_is_better else published - ours.mean
    text = f"{'short' if short > 0 else 'better'} by {abs(short):.2f}"
    if ours.half_width is None:
        return f"{text} (one seed: no interval)"
    return "reproduced" if abs(short) <= ours.half_width else text


def ranks(values: Sequence[float | None], lower_is_better: bool) -> list[int | None]:
    """1 for the best; equal values share the better rank; None stays None."""
    known = [v for v in values if v is not None]
    return [None if v is None else 1 + sum(w < v if lower_is_better else w > v for w in known) for v in values]
