"""A run says so where an evaluation loses more than half of what was won over chance."""

from types import SimpleNamespace
from typing import Any

import pytest
from tests.training.test_trainer import trainer

from nst.evaluate import Metrics, has_collapsed
from nst.signals import StopFlag
from nst.training import loop


@pytest.mark.parametrize(
    ("best", "top1", "chance", "fallen"),
    [
        (70.0, 31.0, 10.0, True),
        (70.0, 41.0, 10.0, False),  # a bit less than half
        (14.0, 10.0, 10.0, False),  # noise near chance
        (16.0, 12.0, 10.0, True),
        (2.5, 1.0, 1.0, False),  # 100 classes: 1.5 points are noise there too
        (90.0, 55.0, 50.0, True),  # two classes
    ],
)
def test_half_of_what_was_won_over_chance(best: float, top1: float, chance: float, fallen: bool) -> None:
    assert has_collapsed(top1, best, chance) is fallen


def test_the_run_says_so_and_what_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two classes, where the best accuracy is never twice that of guessing."""
    said: list[str] = []
    record: Any = SimpleNamespace(
        print=said.append, log=lambda *_: None, draw_heatmaps=lambda *_: None, save=lambda *_: None
    )
    running = trainer(epochs=3)
    found = loop.Loop(running, running.loader, record, chance=50.0)
    accuracies = iter((90.0, 88.0, 52.5))
    monkeypatch.setattr(loop, "evaluate", lambda *_: Metrics(1.0, next(accuracies), 99.0, 100))
    for _ in range(3):
        found.finish_epoch(StopFlag())
    (line,) = [line for line in said if "fallen back" in line]
    assert line.startswith("the run has fallen back: top-1 52.50 % after 90.00 % at best.")
    assert "trainer.clip_grad_norm=2" in line
