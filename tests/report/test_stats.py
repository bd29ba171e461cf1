"""Mean, interval, paired difference, verdict and ranks, against hand-worked numbers and a simulation."""

import math

import numpy as np
import pytest

from nst.report.stats import paired, ranks, sample, verdict


def test_interval_is_student_s():
    found = sample([4.0, 5.0, 6.0])
    assert (found.n, found.mean, found.std) == (3, 5.0, 1.0)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(0.975, 2) of printed tables
    assert sample([1.0, 2.0]).half_width == pytest.approx(12.706205 * math.sqrt(0.5) / math.sqrt(2), rel=1e-6)


def test_interval_covers_95_percent():
    rng = np.random.default_rng(0)
    found = [sample(list(rng.normal(3, 2, 3))) for _ in range(4000)]
    covered = np.mean([abs(f.mean - 3) <= (f.half_width or 0) for f in found])
    assert 0.94 < covered < 0.96


def test_one_value_has_no_spread_and_none_is_an_error():
    assert sample([3.0]).std is None
    assert sample([3.0]).half_width is None
    with pytest.raises(ValueError, match="at least one"):
        sample([])


def test_paired_uses_shared_seeds_only():
    found = paired({0: 5.0, 1: 7.0, 3: 100.0}, {0: 4.0, 1: 4.0, 2: -50.0})
    assert found is not None
    assert (found.n, found.mean) == (2, 2.0)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_pairing_removes_what_seeds_share():
    ours, base = {s: 10.0 * s + 1 for s in range(4)}, {s: 10.0 * s for s in range(4)}
    found = paired(ours, base)
    assert found is not None
    assert (found.mean, found.std) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("values", "published", "lower", "hindrance", "expected"),
    [
        ([4.3, 4.4, 4.5], 4.39, True, None, "reproduced"),
        ([5.0, 5.1, 5.2], 4.39, True, None, "short by 0.71"),
        ([3.0, 3.1, 3.2], 4.39, True, None, "better by 1.29"),
        ([73.0, 73.1, 73.2], 74.92, False, None, "short by 1.82"),
        ([76.0, 76.1, 76.2], 74.92, False, None, "better by 1.18"),
        ([4.0], 4.39, True, None, "better by 0.39 (one seed: no interval)"),
        ([4.3, 4.4], 4.39, True, "reduced", "not comparable: reduced"),
        ([4.3, 4.4], None, True, "reduced", "nothing published"),
    ],
)
def test_verdict(values, published, lower, hindrance, expected):
    assert verdict(sample(values), published, lower, hindrance) == expected


def test_ranks():
    assert ranks([4.0, 3.0, None, 3.0], lower_is_better=True) == [3, 1, None, 1]
    assert ranks([4.0, 3.0], lower_is_better=False) == [1, 2]
