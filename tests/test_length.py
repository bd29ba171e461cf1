"""The length of a run: in steps, and ended by its validation part; exact when killed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Compose
from tests.outcome import rows

import nst.run
from nst.cli.train import run
from nst.evaluate import Metrics
from nst.loop import Loop


def evaluated(summary: dict[str, Any]) -> list[tuple[int, float]]:
    return [(row["step"], row["epoch"]) for row in rows(Path(summary["folder"])) if row["kind"] == "eval"]


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert (left["last"], left["best"], left["steps"]) == (right["last"], right["best"], right["steps"])
    one, other = (load_file(Path(summary["folder"]) / "student.safetensors") for summary in (left, right))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def killed_in_saves(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], start: Callable[[], Any]) -> None:
    """Starts that die after they have saved one of these steps each."""
    save = Loop.save
    for step in steps:

        def patched(self: Loop, step: int = step) -> None:
            save(self)
            if self.training.progress.step == step:
                raise RuntimeError("power cut")

        with monkeypatch.context() as patch:
            patch.setattr(Loop, "save", patched)
            with pytest.raises(RuntimeError, match="power cut"):
                start()


def test_steps_are_the_length_of_a_run_also_within_an_epoch(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of three steps: the fourth and fifth are most of a second one, at whose end it is evaluated. A schedule falls over all five."""
    often = ["trainer.steps=5", "trainer.checkpoint_every=1 steps"]
    own = [*tiny, "loss=ce", *often, "trainer.mixup=1", "schedule=cosine"]
    whole = run(compose(*own, "outputs=" + compose().outputs + "/whole"))
    assert whole["steps"] == 5
    assert not whole["stopped_early"]
    assert evaluated(whole) == [(3, 1), (5, 2)]
    killed_in_saves(monkeypatch, (4, 5), lambda: run(compose(*own)))
    assert_same(run(compose(*own)), whole)
    as_epochs = run(compose(*tiny, "loss=ce", "trainer.steps=6", "trainer.epochs=9"))
    assert_same(as_epochs, run(compose(*tiny, "loss=ce")))


def test_patience_ends_a_run_by_its_validation_part(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = [40.0, 50.0, 50.0, 45.0, 60.0]  # by epoch: two without a better one after the second
    at: list[int] = []
    finish = Loop.finish_epoch

    def finish_epoch(self: Loop) -> None:
        at[:] = [self.training.progress.epoch]
        finish(self)

    monkeypatch.setattr(Loop, "finish_epoch", finish_epoch)
    monkeypatch.setattr(nst.run, "evaluate", lambda *_, **__: Metrics(1.0, accuracies[at[0]], 99.0, 10))
    own = [*tiny, "loss=ce", "trainer.epochs=5", "trainer.patience=2", "data.validation=0.2"]
    whole = run(compose(*own, "outputs=" + compose().outputs + "/whole"))
    assert evaluated(whole) == [(3, 1), (6, 2), (9, 3), (12, 4)]
    assert whole["stopped_early"]
    assert (whole["best"]["epoch"], whole["last"]["top1"]) == (2, 45.0)
    killed_in_saves(monkeypatch, (9, 12), lambda: run(compose(*own)))  # without a summary it does not go on either
    continued = run(compose(*own))
    assert_same(continued, whole)
    assert evaluated(continued) == evaluated(whole)
    assert run(compose(*own, "trainer.eval_every=2"))["folder"] != continued["folder"]  # it decides when a run ends
    with pytest.raises(ValueError, match=r"trainer\.patience=2: it needs a validation part"):
        run(compose(*tiny, "loss=kd", "trainer.patience=2", "dry_run=true"))
