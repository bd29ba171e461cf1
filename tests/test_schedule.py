"""Learning rates against the schedules' statements."""

import itertools

import pytest

from nst.optim import Constant, Cosine, OneCycle, Step


def test_steps_at_fractions_of_the_run() -> None:
    schedule = Step(milestones=[0.75, 0.5], gamma=0.1)
    rates = [schedule(0.2, s, 400) for s in (0, 199, 200, 299, 300, 399)]
    assert rates == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002, 0.002])


def test_cosine_falls_from_lr_to_zero() -> None:
    schedule = Cosine()
    assert schedule(0.1, 0, 100) == pytest.approx(0.1)
    assert schedule(0.1, 50, 100) == pytest.approx(0.05)
    assert 0 < schedule(0.1, 99, 100) < 1e-4


def test_onecycle_peaks_at_the_warmup() -> None:
    schedule = OneCycle(warmup=0.2)
    rates = [schedule(0.4, s, 100) for s in range(100)]
    assert rates.index(max(rates)) == 20
    assert max(rates) == pytest.approx(0.4)
    assert all(a < b for a, b in itertools.pairwise(rates[:21]))
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert rates[-1] < 0.01


@pytest.mark.parametrize("schedule", [Step(warmup=0.1), Constant(warmup=0.1)])
def test_warmup_rises_in_front_of_any_schedule(schedule: Step | Constant) -> None:
    rates = [schedule(0.1, s, 100) for s in range(12)]
    assert rates[0] < rates[5] < rates[9] < rates[10] == rates[11] == 0.1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Step(milestones=[100]), "milestones are"),
        (lambda: Step(gamma=-1), "gamma is"),
        (lambda: Step(gamma=float("nan")), "gamma is"),
        (lambda: Cosine(warmup=1.0), "warmup is"),
        (lambda: OneCycle(warmup=float("nan")), "warmup is"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()  # type: ignore[operator]
