"""The statistics of the tables. Every figure is in percent; a sample is one value a seed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

Frame = Any  # a `pandas.DataFrame`, whose annotations leave open what a selection of it is
Series = Any  # a `pandas.Series`

LEVEL = 0.95
GAIN = "mean over the seeds ± half its 95 % interval [median] (seeds)"


@dataclass(frozen=True)
class Sample:
    """Mean, standard deviation (n − 1), half the width of the 95 % interval of the mean (None where n < 2), median."""

    n: int
    mean: float
    std: float | None
    half_width: float | None
    median: float

    def __str__(self) -> str:
        """Mean ± standard deviation (number of seeds)."""
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}") + f" ({self.n})"

    @property
    def interval(self) -> str:
        """The 95 % interval of the mean, as far as it is a percentage."""
        if self.half_width is None:
            return "–"
        return f"{max(self.mean - self.half_width, 0):.2f} … {min(self.mean + self.half_width, 100):.2f}"

    @property
    def signed(self) -> str:
        """A difference with half the width of its 95 % interval."""
        return f"{self.mean:+.2f}" + ("" if self.half_width is None else f" ± {self.half_width:.2f}")

    @property
    def gain(self) -> str:
        """A difference with half the width of its 95 % interval, its median and the number of seeds, see `GAIN`."""
        return self.signed + ("" if self.half_width is None else f" [{self.median:+.2f}]") + f" ({self.n})"


def sample(values: Iterable[float] | Series) -> Sample | None:
    """Summarise values, one a seed; None where there are none. The interval is Student's t."""
    found = np.asarray(values, dtype=float)
    if not len(found):
        return None
    mean, median = float(found.mean()), float(np.median(found))
    if len(found) == 1:
        return Sample(1, mean, None, None, median)
    std = found.std(ddof=1)
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, len(found) - 1)) * float(std / len(found) ** 0.5)
    return Sample(len(found), mean, float(std), half_width, median)


def paired(values: Series, baseline: Series) -> Sample | None:
    """Differences to the baseline, both indexed by seed, over the seeds that both have; None if there are none."""
    return sample((values - baseline).dropna())


def verdict(ours: Sample, published: float | None, lower_is_better: bool, incomparable: str = "") -> str:
    """Ours beside the published figure, unless `incomparable` says why not: "reproduced" where it lies in our 95 % interval."""
    if published is None:
        return "nothing published"
    if incomparable:
        return f"not comparable: {incomparable}"
    short = ours.mean - published if lower_is_better else published - ours.mean
    text = f"{'short' if short > 0 else 'better'} by {abs(short):.2f}"
    if ours.half_width is None:
        return f"{text} (one seed: no interval)"
    return "reproduced" if abs(short) <= ours.half_width else text


@dataclass(frozen=True)
class Gain:
    """The gain of a method over another one, by value of the setting along which the groups of a table lie."""

    label: str
    nst: bool  # whether NST is one of its terms
    points: dict[float, Sample]  # at each value at which some seed has both
    lost: dict[float, str]  # "; collapsed: 1", if runs collapsed or diverged
    overall: Sample | None  # averaged over the values, of the seeds that have all of them


def gains(runs: Frame, lower_is_better: bool, of_nst: bool = False) -> list[Gain]:
    """Each method's gain over the baseline; or, `of_nst`, what NST adds: alone over it, in a sum over the same sum without NST.

    A gain is a mean of differences between runs of the same seed, in percentage points, positive where it is better. A sum of
    which no method, or more than one, is the same without NST has none.

    Args:
        runs: a row a run, the baseline's first, with at (a number), method, seed, value (NaN where it has none), weights
            (λ by term beside the cross-entropy), collapsed and diverged.
    """
    places, sign = sorted(runs["at"].unique()), -1 if lower_is_better else 1
    found: dict[str, dict[float, Series]] = {}  # label → value of the setting → seed → difference
    lost: dict[str, dict[float, str]] = {}
    with_nst: set[str] = set()
    for at in places:
        methods = dict([*runs[runs["at"] == at].groupby("method", sort=False)])
        values = {name: sign * group.set_index("seed")["value"].dropna() for name, group in methods.items()}
        weights = {name: group["weights"].iloc[0] for name, group in methods.items()}
        baseline = next(iter(methods))
        for name, own in weights.items():
            rest = {term: weight for term, weight in own.items() if not term.startswith("nst")}
            same = [other for other in weights if weights[other] == rest] if rest and of_nst else [baseline]
            if name == baseline or (of_nst and (rest == own or len(same) != 1)):
                continue
            label = f"{name} − {same[0]}" if of_nst else name
            found.setdefault(label, {})[at] = (values[name] - values[same[0]]).dropna()
            lost.setdefault(label, {})[at] = lost_text(methods[name])
            if rest != own:
                with_nst.add(label)
    made = []
    for label, by_place in found.items():
        points = {at: point for at, values in by_place.items() if (point := sample(values))}
        every = pd.concat([*by_place.values()], axis=1).dropna().mean(axis=1) if len(by_place) == len(places) else ()
        made.append(Gain(label, label in with_nst, points, lost[label], sample(every)))
    return made


def lost_text(runs: Frame) -> str:
    """Counts of runs that collapsed or diverged, "" if none did."""
    counts = (("collapsed", int(runs["collapsed"].sum())), ("diverged", int(runs["diverged"].notna().sum())))
    return "".join(f"; {name}: {count}" for name, count in counts if count)
