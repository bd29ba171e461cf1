"""Mean, interval, paired difference, verdict, ranks and gains, against hand-worked numbers."""

import math

import pandas as pd
import pytest

from nst.report.text import gain_grids
from nst.tables.statistics import gains, paired, sample, verdict


def test_interval_is_student_s() -> None:
    found = sample([4.0, 5.0, 6.0])
    assert found is not None
    assert (found.n, found.mean, found.std, str(found)) == (3, 5.0, 1.0, "5.00 ± 1.00 (3)")
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(0.975, 2) of printed tables
    assert (str(sample([3.0])), sample([])) == ("3.00 (1)", None)  # no interval


def test_pairs_are_of_the_same_seed() -> None:
    """What seeds share is no variation of the difference, and a seed that one side lacks is left out."""
    ours, base = pd.Series({0: 1.0, 1: 11.0, 3: 99.0}), pd.Series({0: 0.0, 1: 10.0, 2: -50.0})
    found = paired(ours, base)
    assert found is not None
    assert (found.n, found.mean, found.std) == (2, 1.0, 0.0)
    assert paired(pd.Series({0: 1.0}), pd.Series({1: 1.0})) is None


@pytest.mark.parametrize(
    ("values", "incomparable", "expected"),
    [
        ([4.3, 4.4, 4.5], "", "reproduced"),
        ([5.0, 5.1, 5.2], "", "short by 0.71"),
        ([4.0], "", "better by 0.39 (one seed: no interval)"),
        ([4.3, 4.4], "reduced", "not comparable: reduced"),
    ],
)
def test_verdict(values: list[float], incomparable: str, expected: str) -> None:
    ours = sample(values)
    assert ours is not None
    assert verdict(ours, 4.39, True, incomparable) == expected


KD, NST = {"kd": 16.0}, {"nst_poly": 50.0}


def frame(*methods: tuple[int, str, dict[str, float], tuple[float, ...]]) -> pd.DataFrame:
    """Runs of three seeds, their accuracies above 70, 71 and 72."""
    return pd.DataFrame(
        [
            {"at": at, "method": label, "weights": weights, "seed": seed, "value": 70 + seed + plus, "collapsed": plus < -15, "diverged": None}
            for at, label, weights, more in methods
            for seed, plus in enumerate(more)
        ]
    )  # fmt: skip


FEW = (
    (1000, "Baseline", {}, (0.0, 0.0, 0.0)),
    (1000, "KD", KD, (-1.0, 0.0, -20.0)),
    (1000, "NST", NST, (3.0, 4.0, 5.0)),
    (1000, "KD + NST", KD | NST, (1.0, 3.0, -17.0)),
)
MANY = (
    (50000, "Baseline", {}, (0.0, 0.0, 0.0)),
    (50000, "KD", KD, (1.0, 1.0, 2.0)),
    (50000, "NST", NST, (-1.0, -1.0, -1.0)),
)


def test_gains_along_an_axis() -> None:
    """Half of the interval of (3, 4, 5): 4.303 · 1 / √3; the median shows what one run does to the mean of -7."""
    runs = frame(*FEW, *MANY)
    grid, _ = gain_grids(runs, False, "training images")
    assert grid[0] == ["training images", "1,000", "50,000"]
    assert grid[1] == ["baseline, %", *2 * ["71.00 ± 1.00 [71.00] (3)"]]
    assert grid[2][1].endswith(" [-1.00] (3); collapsed: 1")
    assert grid[3] == ["NST", "+4.00 ± 2.48 [+4.00] (3)", "-1.00 ± 0.00 [-1.00] (3)"]
    assert grid[4][2] == "–"
    nst = next(gain for gain in gains(runs, lower_is_better=True) if gain.label == "NST")
    assert nst.points[1000].mean == -4.0  # more errors are no gain


def test_what_nst_adds_is_the_sum_less_the_sum_without_it() -> None:
    runs = frame(*FEW, *MANY)
    _, grid = gain_grids(runs, False, "training images")
    assert [row[0] for row in grid] == ["training images", "NST − Baseline", "KD + NST − KD"]
    assert grid[1][1:] == ["+4.00 ± 2.48 [+4.00] (3)", "-1.00 ± 0.00 [-1.00] (3)", "+1.50 ± 1.24 [+1.50] (3)"]
    assert grid[2][1:] == ["+2.67 ± 1.43 [+3.00] (3)", "–", "–"]
    fewer = frame(*FEW, *MANY[:2], (50000, "NST", NST, (-1.0, -1.0)))  # the mean is over the seeds that have all values
    overall = gains(fewer, lower_is_better=False, of_nst=True)[0].overall
    assert overall is not None
    assert overall.n == 2


def test_a_sum_whose_rest_is_not_known_has_no_gain_by_nst() -> None:
    """KD of another weight is no part of it, and of two with its weight either may be."""
    another, two = (1000, "KD + NST", {"kd": 1.0} | NST, (0.0,)), (1000, "KD, temperature 8", KD, (0.0,))
    for runs in (frame(*FEW[:3], another), frame(*FEW, two)):
        assert [gain.label for gain in gains(runs, lower_is_better=False, of_nst=True)] == ["NST − Baseline"]
