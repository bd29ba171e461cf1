"""Figures as inline SVG: colours are the page's CSS variables, so that they follow the reader's light or dark scheme."""

import math
from collections.abc import Sequence
from html import escape

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

    def ticks(self) -> list[float]:
        """Round values to mark."""
        return log_ticks(10**self.low, 10**self.high) if self.log else ticks(self.low, self.high)

    def scale(self) -> str:
        """The strip with the numbers."""
        marks = "".join(
            f'<text x="{self(t)}%" y="13" text-anchor="middle">{t:g}</text>' for t in self.ticks() if 3 < self(t) < 97
        )
        return f'<svg class="strip scale" role="presentation">{marks}</svg>'

    def grid(self) -> str:
        """Vertical lines behind a strip."""
        return "".join(f'<line class="grid" x1="{self(t)}%" x2="{self(t)}%" y1="0" y2="100%"/>' for t in self.ticks())


def result_strip(
    axis: Axis, values: Sequence[float], mean: float | None, half: float | None, published: float | None, colour: str
) -> str:
    """One method: a faint dot a seed, the mean with its interval, a diamond for the published figure."""
    parts = [axis.grid()]
    if mean is not None and half is not None:
        low, high = max(axis(max(mean - half, 0)), 0), min(axis(min(mean + half, 100)), 100)
        parts.append(f'<line class="{colour} whisker" x1="{low}%" x2="{high}%" y1="50%" y2="50%"/>')
    parts += [f'<circle class="{colour} faint" cx="{axis(v)}%" cy="50%" r="3.5"/>' for v in values]
    if mean is not None:
        parts.append(f'<circle class="{colour}" cx="{axis(mean)}%" cy="50%" r="5"/>')
    if published is not None:
        parts.append(f'<text class="theirs" x="{axis(published)}%" y="50%" dy="0.36em" text-anchor="middle">◆</text>')
    said = "not run" if mean is None else f"mean {mean:.2f}"
    said += "" if published is None else f", published {published:.2f}"
    return f'<svg class="strip" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def change_strip(axis: Axis, before: float, after: float, colour: str) -> str:
    """From a hollow dot to a full one."""
    return (
        f'<svg class="strip" role="img" aria-label="from {before:.4g} to {after:.4g}">{axis.grid()}'
        f'<line class="{colour} whisker" x1="{axis(before)}%" x2="{axis(after)}%" y1="50%" y2="50%"/>'
        f'<circle class="{colour} hollow" cx="{axis(before)}%" cy="50%" r="4.5"/>'
        f'<circle class="{colour}" cx="{axis(after)}%" cy="50%" r="5"/></svg>'
    )


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 220, 150, 30, 8, 8, 20


def curves(
    title: str, series: Sequence[tuple[str, dict[float, list[float]]]], last_epoch: float, low: float, high: float
) -> str:
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

    parts = []
    for t in log_ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t)}" y2="{y(t)}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y(t) + 3.5}" text-anchor="end">{t:g}</text>')
    for t in ticks(0, last_epoch, 4):
        parts.append(f'<text x="{x(t)}" y="{HEIGHT - 6}" text-anchor="middle">{t:g}</text>')
    for colour, points in series:
        epochs = sorted(points)
        if not epochs:
            continue
        upper = [f"{x(e)},{y(max(points[e]))}" for e in epochs]
        lower = [f"{x(e)},{y(min(points[e]))}" for e in reversed(epochs)]
        parts.append(f'<polygon class="{colour} band" points="{" ".join(upper + lower)}"/>')
        middle = [(x(e), y(sum(points[e]) / len(points[e]))) for e in epochs]
        parts.append(f'<polyline class="{colour} line" points="{" ".join(f"{a},{b}" for a, b in middle)}"/>')
        parts.append(f'<circle class="{colour}" cx="{middle[-1][0]}" cy="{middle[-1][1]}" r="2.5"/>')
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def scatter(title: str, groups: Sequence[tuple[str, Points]], size: int = 260, edge: int = 8) -> str:
    """Points in the plane, without axes (t-SNE's mean nothing): (colour class, points)."""
    everything = [p for _, points in groups for p in points]
    lows = [min(p[i] for p in everything) for i in (0, 1)]
    span = max(max(p[i] for p in everything) - lows[i] for i in (0, 1)) or 1.0

    def at(p: Sequence[float]) -> tuple[float, float]:
        return tuple(round(edge + (size - 2 * edge) * (p[i] - lows[i]) / span, 1) for i in (0, 1))  # type: ignore[return-value]

    parts = []
    for colour, points in groups:
        for p in points:
            cx, cy = at(p)
            parts.append(f'<circle class="{colour} point" cx="{cx}" cy="{cy}" r="3.2"/>')
    return (
        f'<svg class="plot" viewBox="0 0 {size} {size}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
