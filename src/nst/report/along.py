"""Gains along an axis: a table whose groups are values of one setting, such as sizes of the training set.

A gain is the difference to another method of the same value over the seeds that both have, in percentage points, positive where
it is better.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from nst.report.stats import Sample, paired, sample

Record = dict[str, Any]
NAMES = {"data.limit": "training images"}
CELL = "mean over the seeds ± half its 95 % interval [median] (seeds)"


@dataclass(frozen=True)
class Method:
    """A method's runs at one value."""

    label: str
    weights: Mapping[str, float]  # λ of each term beside the cross-entropy
    by_seed: Mapping[int, float]  # accuracy or error in percent, of the runs that reached the end
    fell_back: int = 0  # runs; they count
    diverged: int = 0  # runs; they have no accuracy


Values = Mapping[float, Sequence[Method]]
"""Value of the setting → its methods, the baseline first."""


@dataclass(frozen=True)
class Line:
    """The gain of a method over another one, by value of the setting."""

    label: str
    nst: bool  # whether NST is one of its terms
    sides: dict[
        float, tuple[Mapping[int, float], Mapping[int, float]]
    ]  # by seed: the gain is the first less the second
    lost: dict[float, str]  # "; fell back: 1", if runs fell back or diverged

    @property
    def points(self) -> dict[float, Sample]:
        """The gain at each value at which some seed has both."""
        return {value: gain for value, sides in self.sides.items() if (gain := paired(*sides)) is not None}

    def overall(self) -> Sample | None:
        """The gain averaged over the values, of the seeds that have all of them."""
        first, second = (
            {seed: fmean(by_seed[seed] for by_seed in side) for seed in set.intersection(*map(set, side))}
            for side in zip(*self.sides.values(), strict=True)
        )
        return paired(first, second)


def from_result(result: Record) -> dict[float, list[Method]]:
    """The methods of a table's result by value, ascending; empty if the table has no such setting."""
    if result["along"] is None:
        return {}
    keys = ("label", "weights", "by_seed", "fell_back", "diverged")
    values = {g["at"]: [Method(**{key: row[key] for key in keys}) for row in g["rows"]] for g in result["groups"]}
    return dict(sorted(values.items()))


def axis_name(key: str) -> str:
    """The setting's name in texts."""
    return NAMES.get(key, key)


def number(value: float) -> str:
    """A value of the axis: 50,000."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def gains(values: Values, lower: bool) -> list[Line]:
    """Every method's gain over the baseline.

    Args:
        lower: whether lower is better, as for errors.
    """
    return _lines(values, lower, lambda method, methods: None if method is methods[0] else (method.label, methods[0]))


def nst_gains(values: Values, lower: bool) -> list[Line]:
    """The gain by NST: alone over the baseline, in a sum over the same sum without it, if one method is that."""

    def without(method: Method, methods: Sequence[Method]) -> tuple[str, Method] | None:
        others = {term: weight for term, weight in method.weights.items() if not term.startswith("nst")}
        if len(others) == len(method.weights):
            return None
        found = [m for m in methods if dict(m.weights) == others] if others else methods[:1]
        # two of equal weights differ in another option, which is not known here
        return (f"{method.label} − {found[0].label}", found[0]) if len(found) == 1 else None

    return _lines(values, lower, without)


Choose = Callable[[Method, Sequence[Method]], tuple[str, Method] | None]


def _lines(values: Values, lower: bool, choose: Choose) -> list[Line]:
    """A line for each label that `choose` gives a method, with the method that it is compared with."""
    lines: dict[str, Line] = {}
    for value, methods in values.items():
        for method in methods:
            if (chosen := choose(method, methods)) is None:
                continue
            label, other = chosen
            line = lines.get(label, Line(label, False, {}, {}))
            lines[label] = line = replace(line, nst=line.nst or any(term.startswith("nst") for term in method.weights))
            own, others = method.by_seed, other.by_seed
            line.sides[value] = (others, own) if lower else (own, others)
            line.lost[value] = lost(method)
    return list(lines.values())


def lost(method: Method) -> str:
    """Counts of runs that fell back or diverged, "" if none did."""
    counts = (("fell back", method.fell_back), ("diverged", method.diverged))
    return "".join(f"; {name}: {count}" for name, count in counts if count)


def cell(gain: Sample | None) -> str:
    """A gain as text, as `CELL` says."""
    if gain is None:
        return "–"
    text = f"{gain.mean:+.2f}"
    if gain.half_width is not None:
        text += f" ± {gain.half_width:.2f} [{gain.median:+.2f}]"
    return f"{text} ({gain.n})"


def gain_rows(values: Values, lower: bool, key: str) -> list[list[str]]:
    """Header and rows: the baseline as it is, then each method's gain, with the counts of lost runs."""
    rows = [_header(values, key), ["baseline, %", *(_baseline(methods[0]) for methods in values.values())]]
    for line in gains(values, lower):
        rows.append([line.label, *(cell(line.points.get(value)) + line.lost.get(value, "") for value in values)])
    return rows


def nst_rows(values: Values, lower: bool, key: str) -> list[list[str]]:
    """Header and rows of the gains by NST, the last column their mean; the header alone if no method has NST."""
    rows = [[*_header(values, key), "mean"]]
    for line in nst_gains(values, lower):
        overall = line.overall() if len(line.sides) == len(values) else None
        rows.append([line.label, *(cell(line.points.get(value)) for value in values), cell(overall)])
    return rows


def _header(values: Values, key: str) -> list[str]:
    return [axis_name(key), *(number(value) for value in values)]


def _baseline(method: Method) -> str:
    if not method.by_seed:
        return "–" + lost(method)
    statistics = sample(list(method.by_seed.values()))
    spread = "" if statistics.std is None else f" ± {statistics.std:.2f} [{statistics.median:.2f}]"
    return f"{statistics.mean:.2f}{spread} ({statistics.n}){lost(method)}"
