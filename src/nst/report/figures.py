"""Figures by matplotlib, as SVG whose colours are CSS variables of `style.css`: they follow the reader's light or dark scheme."""

import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from html import escape
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nst.report.text import number
from nst.tables.statistics import Gain, Sample

# Colours that matplotlib draws with, and the CSS variable that takes the place of each in the file.
COLOURS = {
    "baseline": "#010101", "nst": "#010102", "other": "#010103", "published": "#010104", "ink": "#010105", "mute": "#010106",
    "grid": "#010107", "card": "#010108", **{f"hue{i}": f"#01020{i}" for i in range(8)},
}  # fmt: skip
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "nst", "text.parse_math": False, "font.size": 9, "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["mute"], "xtick.color": COLOURS["mute"], "ytick.color": COLOURS["ink"], "text.color": COLOURS["mute"],
    "axes.grid": True, "grid.color": COLOURS["grid"], "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none", "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.titlecolor": COLOURS["ink"], "axes.titlesize": 9, "legend.frameon": False, "lines.markersize": 5,
}  # fmt: skip
CELLS = ("#3f86dd", "#d9711f")  # of a matrix, a picture, by sign: transparent where small, so on light and dark ground
NUMBERED = 20  # columns of a matrix, up to which its cells show their numbers


def _as_svg(draw: Callable[..., tuple[Axes, str]]) -> Callable[..., str]:
    """Of a function that returns axes and a description, one that returns an `<svg>` without styles, which the page refuses."""

    def attributes(style: re.Match[str]) -> str:  # of a font its size alone
        found = dict(re.findall(r"([\w-]+): *([^;]+)", style[1]))
        found.pop("font-family", None)
        if size := re.search(r"[\d.]+px", found.pop("font", "")):
            found["font-size"] = size[0]
        return " ".join(f'{name}="{value}"' for name, value in found.items())

    @wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> str:
        with mpl.rc_context(STYLE):
            (axes, description), file = draw(*arguments, **options), io.StringIO()
            about, figure = {"Date": None, "Creator": None}, cast(Figure, axes.figure)
            figure.savefig(file, format="svg", metadata=about, bbox_inches="tight", pad_inches=0.04)
        text = file.getvalue().partition("<svg")[2]
        text = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style [^>]*>.*?</style>|\s*<!--.*?-->", "", text, flags=re.S)
        text = re.sub(r'style="([^"]*)"', attributes, re.sub(r'<g id="[^"]*"', "<g", text))
        label = f'role="img" aria-label="{escape(description)}"'
        text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: label, text, count=1)
        for name, colour in COLOURS.items():
            text = text.replace(colour, f"var(--{name})")
        return f"<svg{text}".strip()

    return drawn


def _axes(width: float, height: float) -> Axes:
    """The axes of a new figure of a size in pixels of the page."""
    return Figure(figsize=(width / 72, height / 72)).add_axes((0, 0, 1, 1))


def _lines(labels: Sequence[str]) -> Axes:
    """Axes with a named line for each label, the first on top."""
    axes = _axes(430, 23 * len(labels) + 6)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return axes


def _log_scale(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic axis, with marks at 1, 2 and 5 of each decade, or at the decades where those are many."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high / low < 300 else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@_as_svg
def points(rows: Sequence[tuple[str, str, Collection[float], Sample | None, float | None]], description: str) -> tuple[Axes, str]:  # fmt: skip
    """A line a method: faint dots for the seeds, the mean with its 95 % interval, cut off where wide, a diamond for what is published.

    A row is label, kind (a colour), a value for each seed, their statistics, the published value.
    """
    axes = _lines([row[0] for row in rows])
    for y, (_, kind, values, mean, published) in enumerate(rows):
        axes.scatter([*values], [y] * len(values), s=22, color=COLOURS[kind], alpha=0.35, linewidths=0)
        if mean:
            axes.plot(mean.mean, y, "o", color=COLOURS[kind], markersize=6)
        if published is not None:
            axes.plot(published, y, "D", color=COLOURS["published"], markersize=5)
    low, high = axes.get_xlim()
    margin = max(high - low, 0.2) * 0.75
    for y, (_, kind, _, mean, _) in enumerate(rows):
        if mean and (half := mean.half_width) is not None:
            ends = [max(mean.mean - half, low - margin, 0), min(mean.mean + half, high + margin, 100)]
            axes.plot(ends, [y, y], color=COLOURS[kind], linewidth=2, alpha=0.75)
    return axes, description


@_as_svg
def changes(rows: Sequence[tuple[str, str, float, float]], description: str) -> tuple[Axes, str]:
    """A line a method, logarithmic: from a hollow dot to a full one; a row is label, kind, value before and after."""
    axes = _lines([row[0] for row in rows])
    for y, (_, kind, before, after) in enumerate(rows):
        axes.plot([before, after], [y, y], color=COLOURS[kind], linewidth=1.6, alpha=0.6)
        axes.plot(before, y, "o", markerfacecolor=COLOURS["card"], markeredgecolor=COLOURS[kind], markersize=6)
        axes.plot(after, y, "o", color=COLOURS[kind], markersize=6)
    values = [max(value, 1e-12) for row in rows for value in row[2:]]
    _log_scale(axes, "x", min(values) * 0.7, max(values) * 1.4)
    return axes, description


@_as_svg
def curves(lines: Mapping[str, Mapping[float, Sequence[float]]], extent: tuple[float, ...], description: str) -> tuple[Axes, str]:  # fmt: skip
    """Error over epochs, logarithmic, as the paper's Figure 4: the mean over seeds, a band from the lowest to the highest.

    `lines` is kind (a colour) → epoch → the error of each seed, `extent` last epoch, lowest and highest error of all panels.
    """
    axes, (last, low, high) = _axes(190, 120), extent
    for kind, line in lines.items():
        errors = np.array([*line.values()])  # [epochs, seeds]
        axes.fill_between([*line], errors.min(1), errors.max(1), color=COLOURS[kind], alpha=0.2, linewidth=0)
        axes.plot([*line], errors.mean(1), color=COLOURS[kind], linewidth=1.7)
    _log_scale(axes, "y", max(low * 0.9, 0.1), max(high * 1.05, low * 1.5))
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return axes, description


@_as_svg
def scatter(groups: Mapping[str, Sequence[Sequence[float]]], description: str) -> tuple[Axes, str]:
    """Points in the plane, without axes (t-SNE's mean nothing), by colour."""
    axes = _axes(230, 230)
    for colour, places in groups.items():
        axes.scatter(*zip(*places, strict=True), s=16, color=COLOURS[colour], alpha=0.75, linewidths=0)
    axes.set_axis_off()
    return axes, description


@_as_svg
def gain_lines(gains: Sequence[Gain], axis: str) -> tuple[Axes, str]:
    """Each method's gain along the table's axis, logarithmic, with its 95 % interval, cut off at the frame: solid with NST, else dashed."""
    axes = _axes(430, 300)
    every = [point for gain in gains for point in gain.points.values()]
    places = sorted({place for gain in gains for place in gain.points})
    for i, gain in enumerate(gains):
        own, points = zip(*sorted(gain.points.items()), strict=True)
        means, halves = np.array([[point.mean, point.half_width or 0.0] for point in points]).T
        colour, line = COLOURS[f"hue{i % 8}"], "solid" if gain.nst else (0, (4, 2.5))
        axes.fill_between(own, means - halves, means + halves, color=colour, alpha=0.12, linewidth=0)
        axes.plot(own, means, color=colour, label=gain.label, marker="o", markersize=4, linewidth=1.8, linestyle=line)
    room = max(sorted(point.half_width or 0.0 for point in every)[len(every) // 2], 0.5)
    axes.set(xscale="log", xlim=(places[0] * 0.93, places[-1] * 1.07), xlabel=f"{axis}, logarithmic")
    axes.set_ylim(min(0.0, *(p.mean for p in every)) - room, max(0.0, *(p.mean for p in every)) + room)
    axes.set_xticks(places, [number(place) for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axhline(0, color=COLOURS["mute"], linewidth=1)
    axes.set_ylabel("gain over the baseline, percentage points")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), labelcolor=COLOURS["ink"], handlelength=2.2)
    return axes, f"gain over the baseline by {axis}: {', '.join(gain.label for gain in gains)}"


@_as_svg
def matrix(
    values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], description: str,
    form: str = "{:.1f}", extent: tuple[float, float] | None = None,
) -> tuple[Axes, str]:  # fmt: skip
    """Coloured cells, the deeper the higher, with their numbers where there are few; empty ones for None or NaN.

    `extent` are the values of no colour and of the deepest, of either sign; None: the lowest and the highest.
    """
    numbers, few = np.array(values, dtype=float), len(columns) <= NUMBERED
    known = ~np.isnan(numbers)
    low, high = extent or (np.nanmin(numbers), np.nanmax(numbers))
    depth = np.nan_to_num((abs(numbers) - low) / max(high - low, 1e-9)).clip(0, 1)
    cells = np.array([to_rgba(colour) for colour in CELLS])[(numbers < 0).astype(int)]
    cells[..., 3] = (0.04 + 0.55 * depth if few else depth) * known
    widest = max(len(part) for column in columns for part in column.split("\n"))
    size, font = (max(46, 5.5 * widest), 25) if few else (max(7, 460 / len(columns)),) * 2, 9 if few else 6
    axes = _axes(size[0] * len(columns), size[1] * len(rows))
    axes.imshow(cells, interpolation="nearest", aspect="auto")
    for y, x in zip(*np.nonzero(known), strict=True) if few else ():
        axes.text(x, y, form.format(numbers[y, x]), ha="center", va="center", color=COLOURS["ink"])
    axes.set_xticks(range(len(columns)), columns, fontsize=font, rotation=0 if few else 90)
    axes.set_yticks(range(len(rows)), rows, fontsize=font)
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return axes, description
