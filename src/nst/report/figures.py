"""Figures as coordinates; `templates/figures.html` draws them as inline SVG.

Colours are classes of the page, so that they follow the reader's light or dark scheme.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Points = Sequence[Sequence[float]]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high], at most `most` of them."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / most))
    step = next(step * m for m in (1, 2, 5, 10) if span / (step * m) <= most)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: 1, 2, 5 of every decade, the decades alone where those are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    if len(fine) < 3:
        return ticks(low, high, 5)
    return fine if len(fine) <= 6 else [10.0**d for d in decades if low <= 10.0**d <= high]


class Axis:
    """Values to percent of a strip's width, linear or logarithmic."""

    def __init__(self, values: Sequence[float], log: bool = False) -> None:
        """The range of `values` with a margin."""
        self.log = log
        ends = [math.log10(v) for v in values if v > 0] if log else list(values)
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        margin = max((high - low) * 0.06, 0.02 if log else 0.05)
        self.low, self.high = low - margin, high + margin

    def __call__(self, value: float) -> float:
        """The place of a value, 0 to 100."""
        place = math.log10(max(value, 1e-12)) if self.log else value
        return round(100 * (place - self.low) / (self.high - self.low), 2)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Round values: place and text."""
        marks = log_ticks(10**self.low, 10**self.high) if self.log else ticks(self.low, self.high)
        return [(self(value), f"{value:g}") for value in marks]


@dataclass(frozen=True)
class Strip:
    """One line of a figure: places in percent of its width."""

    axis: Axis
    name: str
    colour: str
    description: str  # for screen readers
    whisker: tuple[float, float] | None = None
    faint: list[float] = field(default_factory=list)
    hollow: float | None = None
    full: float | None = None
    diamond: float | None = None


def result_strip(
    axis: Axis,
    name: str,
    colour: str,
    values: Sequence[float],
    mean: float | None,
    half: float | None,
    published: float | None,
) -> Strip:
    """One method: a faint dot a seed, the mean with its interval, a diamond for the published figure."""
    whisker = None
    if mean is not None and half is not None:
        whisker = max(axis(max(mean - half, 0)), 0), min(axis(min(mean + half, 100)), 100)
    text = "not run" if mean is None else f"mean {mean:.2f}"
    text += "" if published is None else f", published {published:.2f}"
    return Strip(
        axis, name, colour, text, whisker, [axis(v) for v in values],
        full=None if mean is None else axis(mean), diamond=None if published is None else axis(published),
    )  # fmt: skip


def change_strip(axis: Axis, name: str, colour: str, before: float, after: float) -> Strip:
    """From a hollow dot to a full one."""
    ends = axis(before), axis(after)
    return Strip(axis, name, colour, f"from {before:.4g} to {after:.4g}", ends, hollow=ends[0], full=ends[1])


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 220, 150, 30, 8, 8, 20


@dataclass(frozen=True)
class Series:
    """A line with its band, as SVG's lists of points."""

    colour: str
    band: str
    line: str
    end: tuple[float, float]


@dataclass(frozen=True)
class Curves:
    """Test error over epochs."""

    name: str
    description: str
    rows: list[tuple[float, str]]  # height and text of the marks of the error axis
    columns: list[tuple[float, str]]
    series: list[Series]


def curves(
    name: str, series: Sequence[tuple[str, dict[float, list[float]]]], last_epoch: float, low: float, high: float
) -> Curves:
    """Test error over epochs, logarithmic: the mean over seeds as a line, lowest to highest seed as a band.

    Args:
        series: (colour class, epoch → one value a seed), the last one on top.
        last_epoch, low, high: the shared axes.
    """
    bottom, top = math.log10(low), math.log10(high)

    def x(epoch: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * epoch / max(last_epoch, 1e-9), 1)

    def y(error: float) -> float:
        place = (math.log10(min(max(error, low), high)) - bottom) / max(top - bottom, 1e-9)
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * place, 1)

    drawn = []
    for colour, points in series:
        epochs = sorted(points)
        if not epochs:
            continue
        upper = [f"{x(e)},{y(max(points[e]))}" for e in epochs]
        lower = [f"{x(e)},{y(min(points[e]))}" for e in reversed(epochs)]
        middle = [(x(e), y(sum(points[e]) / len(points[e]))) for e in epochs]
        line = " ".join(f"{a},{b}" for a, b in middle)
        drawn.append(Series(colour, " ".join(upper + lower), line, middle[-1]))
    rows = [(y(t), f"{t:g}") for t in log_ticks(low, high)]
    columns = [(x(t), f"{t:g}") for t in ticks(0, last_epoch, 4)]
    return Curves(name, f"{name}: test error over epochs", rows, columns, drawn)


@dataclass(frozen=True)
class Scatter:
    """Points in the plane, without axes."""

    name: str
    groups: list[tuple[str, list[tuple[float, float]]]]  # colour class, points


SIZE, EDGE = 260, 8


def scatter(name: str, groups: Sequence[tuple[str, Points]]) -> Scatter:
    """Points in the plane, without axes (t-SNE's mean nothing): (colour class, points)."""
    everything = [p for _, points in groups for p in points]
    left, low = (min(p[i] for p in everything) for i in (0, 1))
    span = max(max(p[0] for p in everything) - left, max(p[1] for p in everything) - low) or 1.0
    scale = (SIZE - 2 * EDGE) / span

    def at(p: Sequence[float]) -> tuple[float, float]:
        return round(EDGE + scale * (p[0] - left), 1), round(EDGE + scale * (p[1] - low), 1)

    return Scatter(name, [(colour, [at(p) for p in points]) for colour, points in groups])
