"""The figure of gains along an axis, as coordinates; `templates/figures.html` draws it, in a page or as a file of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from nst.report.along import Line, axis_name, number
from nst.report.figures import ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 48, 200, 14, 44
COLOURS = 8  # classes hue0 to hue7 of the page's style
DODGE, LABEL = 5.0, 15.0  # between the whiskers of neighbouring lines; between labels


@dataclass(frozen=True)
class Drawn:
    """A line: solid with NST, dashed without."""

    name: str
    colour: str
    solid: bool
    line: str  # SVG's list of points
    dots: list[tuple[float, float]]
    whiskers: list[tuple[float, float, float]]  # x, upper and lower end
    label: float  # height of its name


@dataclass(frozen=True)
class GainFigure:
    """Gain over the baseline, logarithmic values below."""

    description: str
    across: str  # what the axes are
    up: str
    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]
    zero: float
    series: list[Drawn]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def gain_figure(lines: Sequence[Line], key: str) -> GainFigure | None:
    """Each line's means with their 95 % intervals, cut off at the frame; None where nothing is finished.

    Args:
        lines: from `along.gains`.
        key: the setting whose values lie below.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    values = sorted({value for line in lines for value in line.points})
    left, span = math.log10(values[0]), math.log10(values[-1] / values[0]) or 1.0
    low, high = extent(lines)
    margin = 10 + DODGE * len(lines) / 2

    def x(value: float) -> float:
        return LEFT + margin + (WIDTH - LEFT - RIGHT - 2 * margin) * (math.log10(value) - left) / span

    def y(gain: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - min(max(gain, low), high)) / (high - low), 1)

    labels = spread_out([y(line.points[max(line.points)].mean) for line in lines])
    series = []
    for i, (line, label) in enumerate(zip(lines, labels, strict=True)):
        shift = DODGE * (i - (len(lines) - 1) / 2)
        places = [(round(x(value) + shift, 1), line.points[value]) for value in sorted(line.points)]
        dots = [(place, y(gain.mean)) for place, gain in places]
        whiskers = [
            (place, y(gain.mean + gain.half_width), y(gain.mean - gain.half_width))
            for place, gain in places
            if gain.half_width is not None
        ]
        drawn = " ".join(f"{a},{b}" for a, b in dots)
        series.append(Drawn(line.label, f"hue{i % COLOURS}", line.nst, drawn, dots, whiskers, label))
    rows = [(y(mark), f"{mark:+g}" if mark else "0") for mark in ticks(low, high, 8)]
    columns = [(round(x(value), 1), number(value)) for value in values]
    up = "gain over the baseline, percentage points"
    text = f"{up}, by {axis_name(key)}: {', '.join(line.label for line in lines)}"
    return GainFigure(text, f"{axis_name(key)}, logarithmic", up, rows, columns, y(0.0), series)


def extent(lines: Sequence[Line]) -> tuple[float, float]:
    """The range of gains shown: all means and zero, with room for an interval of middling width; wider ones are cut off."""
    points = [gain for line in lines for gain in line.points.values()]
    room = max(median(gain.half_width or 0.0 for gain in points), 0.5)
    means = [gain.mean for gain in points]
    return min(0.0, *means) - room, max(0.0, *means) + room


def spread_out(heights: Sequence[float]) -> list[float]:
    """Heights near those given, none closer than `LABEL` to another, within the frame."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    positions, last = [0.0] * len(heights), TOP - LABEL
    for i in order:
        positions[i] = last = max(heights[i], last + LABEL)
    limit = HEIGHT - BOTTOM
    for i in reversed(order):
        positions[i] = min(positions[i], limit)
        limit = positions[i] - LABEL
    return [round(height, 1) for height in positions]
