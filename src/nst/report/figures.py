"""Figures by matplotlib, as SVG whose colours are CSS variables of `style.css`: they follow the reader's light or dark scheme."""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nst.report.render import html_style
from nst.tables.result import RowResult
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
DASHES = (0, (4, 2.5))


def svg(axes: Axes, description: str) -> str:
    """The drawing as an `<svg>` element without styles, which the page's policy would refuse."""
    figure, file = axes.get_figure(root=True), io.StringIO()
    assert figure is not None
    with mpl.rc_context(STYLE):
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", pad_inches=0.04
        )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style [^>]*>.*?</style>|\s*<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'style="([^"]*)"', _attributes, text)
    text = re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{escape(description)}"', text, count=1
    )
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text.strip()


def as_file(drawing: str, drawn_from: str) -> str:
    """A drawing as an SVG file of its own, with the page's colours.

    Args:
        drawn_from: what names the data that it shows; stands in the file as its description.
    """
    colours = re.findall(r":root \{.*?\}(?: \})?", html_style(), flags=re.S)[0]
    dark = re.findall(r"@media \(prefers-color-scheme: dark\) \{.*?\} \}", html_style(), flags=re.S)[0]
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)[0]
    head, rest = drawing.split(">", 1)
    style = f"<style>{colours}\n{dark}\nsvg {{ font-family: system-ui, sans-serif; }}</style>"
    ground = '<rect width="100%" height="100%" fill="var(--card)"/>'
    size = f' width="{1.6 * float(width):.0f}" height="{1.6 * float(height):.0f}"'
    return f"{head}{size}>\n<desc>{escape(drawn_from)}</desc>\n{style}\n{ground}{rest}\n"


def _attributes(style: re.Match[str]) -> str:
    """Declarations of a `style="…"` as attributes; of a font its size alone."""
    pairs = [declaration.partition(":")[::2] for declaration in style[1].split(";") if ":" in declaration]
    found = {name.strip(): value.strip() for name, value in pairs}
    if size := re.search(r"[\d.]+px", found.pop("font", "")):
        found["font-size"] = size[0]
    found.pop("font-family", None)
    return " ".join(f'{name}="{value}"' for name, value in found.items())


def _axes(width: float, height: float) -> Axes:
    """The axes of a new figure of a size in pixels of the page."""
    return Figure(figsize=(width / 72, height / 72)).add_axes((0, 0, 1, 1))


def _log_scale(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic axis, with marks at 1, 2 and 5 of each decade, or at the decades where those are many."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high / low < 300 else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


class Point(NamedTuple):
    """A method's figure: its kind (a colour), a value for each seed, their statistics, and the published value."""

    label: str
    kind: str
    values: Collection[float]
    sample: Sample | None
    published: float | None = None


def points(rows: Sequence[Point], description: str) -> str:
    """A line a method: faint dots for the seeds, the mean with its 95 % interval, a diamond for the published figure.

    A wide interval is cut off, it would hide all else.
    """
    with mpl.rc_context(STYLE):
        axes = _axes(430, 23 * len(rows) + 6)
        for y, row in enumerate(rows):
            axes.scatter([*row.values], [y] * len(row.values), s=22, color=COLOURS[row.kind], alpha=0.35, linewidths=0)
            if row.sample:
                axes.plot(row.sample.mean, y, "o", color=COLOURS[row.kind], markersize=6)
            if row.published is not None:
                axes.plot(row.published, y, "D", color=COLOURS["published"], markersize=5)
        low, high = axes.get_xlim()
        margin = max(high - low, 0.2) * 0.75
        for y, row in enumerate(rows):
            if row.sample and row.sample.half_width is not None:
                mean, half = row.sample.mean, row.sample.half_width
                ends = [max(mean - half, low - margin, 0), min(mean + half, high + margin, 100)]
                axes.plot(ends, [y, y], color=COLOURS[row.kind], linewidth=2, alpha=0.75)
        _name_lines(axes, [row.label for row in rows])
        return svg(axes, description)


def _name_lines(axes: Axes, labels: Sequence[str]) -> None:
    """A name for each line of a figure, the first on top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def changes(rows: Sequence[tuple[str, str, float, float]], description: str) -> str:
    """A line a method, logarithmic: from a hollow dot to a full one.

    Args:
        rows: label, kind, value before and after.
    """
    with mpl.rc_context(STYLE):
        axes = _axes(430, 23 * len(rows) + 6)
        for y, (_, kind, before, after) in enumerate(rows):
            axes.plot([before, after], [y, y], color=COLOURS[kind], linewidth=1.6, alpha=0.6)
            axes.plot(before, y, "o", markerfacecolor=COLOURS["card"], markeredgecolor=COLOURS[kind], markersize=6)
            axes.plot(after, y, "o", color=COLOURS[kind], markersize=6)
        values = [max(value, 1e-12) for row in rows for value in row[2:]]
        _log_scale(axes, "x", min(values) * 0.7, max(values) * 1.4)
        _name_lines(axes, [row[0] for row in rows])
        return svg(axes, description)


def curves(row: RowResult, baseline: RowResult, extent: tuple[float, float, float]) -> str:
    """Error over epochs, logarithmic, as the paper's Figure 4: the mean over seeds, a band from the lowest to the highest.

    Args:
        extent: last epoch, lowest and highest error of all panels.
    """
    with mpl.rc_context(STYLE):
        axes, (last, low, high) = _axes(190, 120), extent
        for one in dict.fromkeys((baseline.name, row.name)):
            shown = row if one == row.name else baseline
            colour, epochs = COLOURS[shown.kind], [*shown.curve]
            axes.fill_between(
                epochs,
                [min(v) for v in shown.curve.values()],
                [max(v) for v in shown.curve.values()],
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
            axes.plot(epochs, [sum(v) / len(v) for v in shown.curve.values()], color=colour, linewidth=1.7)
        _log_scale(axes, "y", max(low * 0.9, 0.1), max(high * 1.05, low * 1.5))
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        return svg(axes, f"{row.label}: error over epochs")


def scatter(groups: Mapping[str, Sequence[Sequence[float]]], description: str) -> str:
    """Points in the plane, without axes (t-SNE's mean nothing), by colour."""
    with mpl.rc_context(STYLE):
        axes = _axes(230, 230)
        for colour, places in groups.items():
            axes.scatter(*zip(*places, strict=True), s=16, color=COLOURS[colour], alpha=0.75, linewidths=0)
        axes.set_axis_off()
        return svg(axes, description)


def gain_lines(gains: Sequence[Gain], axis: str) -> str | None:
    """Each method's gain along the table's axis, logarithmic, with its 95 % interval as a band: solid with NST, else dashed.

    None where nothing is finished. Wide intervals are cut off at the frame.
    """
    gains = [gain for gain in gains if gain.points]
    if not gains:
        return None
    with mpl.rc_context(STYLE):
        axes = _axes(430, 300)
        for i, gain in enumerate(gains):
            colour, places = COLOURS[f"hue{i % 8}"], sorted(gain.points)
            means = [gain.points[place].mean for place in places]
            halves = [gain.points[place].half_width or 0.0 for place in places]
            axes.fill_between(
                places,
                [m - h for m, h in zip(means, halves, strict=True)],
                [m + h for m, h in zip(means, halves, strict=True)],
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
            line = "solid" if gain.nst else DASHES
            axes.plot(
                places, means, marker="o", color=colour, label=gain.label, linewidth=1.8, markersize=4, linestyle=line
            )
        every = [point for gain in gains for point in gain.points.values()]
        room = max(sorted(point.half_width or 0.0 for point in every)[len(every) // 2], 0.5)
        places = sorted({place for gain in gains for place in gain.points})
        axes.set(xscale="log", xlim=(places[0] * 0.93, places[-1] * 1.07), xlabel=f"{axis}, logarithmic")
        axes.set_ylim(min(0.0, *(p.mean for p in every)) - room, max(0.0, *(p.mean for p in every)) + room)
        axes.set_xticks(places, [number(place) for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axhline(0, color=COLOURS["mute"], linewidth=1)
        axes.set_ylabel("gain over the baseline, percentage points")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), labelcolor=COLOURS["ink"], handlelength=2.2)
        return svg(axes, f"gain over the baseline by {axis}: {', '.join(gain.label for gain in gains)}")


def matrix(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    description: str,
    form: str = "{:.1f}",
    signed: bool = False,
) -> str:
    """Numbers on coloured cells, the deeper the higher.

    Args:
        values: a row a list; None leaves a cell empty.
        form: of a number.
        signed: whether colours say sign and size (for cosines), else the place between lowest and highest.
    """
    known = [value for row in values for value in row if value is not None]
    low, high = (0.0, 1.0) if signed else (min(known), max(known))
    with mpl.rc_context(STYLE):
        widest = max(len(part) for column in columns for part in column.split("\n"))
        axes = _axes(max(46, 5.5 * widest) * len(columns), 25 * len(rows))
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value is not None and value == value:  # a gradient of length zero has no cosine
                    depth = abs(value) if signed else (value - low) / max(high - low, 1e-9)
                    colour = COLOURS["published" if signed and value < 0 else "nst"]
                    axes.add_patch(
                        Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=colour, alpha=0.04 + 0.5 * depth, linewidth=0)
                    )
                    axes.text(x, y, form.format(value), ha="center", va="center", color=COLOURS["ink"])
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.xaxis.tick_top()
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg(axes, description)


def number(value: float) -> str:
    """A value of an axis: 50,000."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
