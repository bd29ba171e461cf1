"""Learning rates against the schedules' statements."""

import itertools

import pytest

from nst.config import OptimConfig
from nst.training.schedule import learning_rate


def test_steps_at_fractions_of_the_run() -> None:
    optim = OptimConfig(lr=0.2, schedule="step", milestones=[0.5, 0.75], gamma=0.1)
    rates = [learning_rate(optim, s, 400) for s in (0, 199, 200, 299, 300, 399)]
    assert rates == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002, 0.002])


def test_cosine_falls_from_lr_to_zero() -> None:
    optim = OptimConfig(lr=0.1, schedule="cosine")
    assert learning_rate(optim, 0, 100) == pytest.approx(0.1)
    assert learning_rate(optim, 50, 100) == pytest.approx(0.05)
    assert 0 < learning_rate(optim, 99, 100) < 1e-4


def test_onecycle_peaks_at_the_warmup() -> None:
    optim = OptimConfig(lr=0.4, schedule="onecycle", warmup=0.2)
    rates = [learning_rate(optim, s, 100) for s in range(100)]
    assert rates.index(max(rates)) == 20
    assert max(rates) == pytest.approx(0.4)
    assert all(a < b for a, b in itertools.pairwise(rates[:21]))
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert rates[-1] < 0.01


def test_warmup_rises_in_front_of_any_schedule() -> None:
    optim = OptimConfig(lr=0.1, schedule="step", warmup=0.1)
    rates = [learning_rate(optim, s, 100) for s in range(12)]
    assert rates[0] < rates[5] < rates[9] < rates[10] == rates[11] == 0.1
