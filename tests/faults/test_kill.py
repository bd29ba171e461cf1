"""SIGKILL anywhere, then the same command: the end is that of a run left alone, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.faults.conftest import Place
from tests.outcome import differing, outcome, rows

from nst.models import resnet8
from nst.storage.checkpoint import Checkpoints

KILLED = -9
MakePlace = Callable[..., Place]
EVERY_LOSS = "loss=[kd,at,fitnet,nst_linear,nst_poly,nst_gaussian]"
OWN = [
    f"+loss.{k}={{_target_: tests.kinds.{k}, weight: 1}}" for k in ("Learned", "Remembering", "Ramped", "SeveralLayers")
]
PAIRS = "+loss.SeveralLayers.layers=[{teacher: stage2, student: stage2}, {teacher: last, student: last}]"
RATES = ["optim=adamw", "optim.lr_factors={layer1: 0.1, loss.fitnet: 2}"]
MIXED = ["loss=[kd,at]", "trainer.mixup=1.0", "trainer.cutmix=1.0", "teacher.precision=bf16", "trainer.ema=0.8"]
IN_EVALUATION = [("signal_in_evaluation", epoch, SIGKILL) for epoch in (1, 2)]
AFTER = {step: ("in_step", step, "killed") for step in range(1, 13)}
RUNS: dict[str, tuple[list[str], str, list[tuple[Any, ...]]]] = {  # arguments, how often it saves, what kills it
    "every loss, cached teacher": (
        [EVERY_LOSS, "cache.views=3"], "2 steps",
        [("while_writing", 4, SIGKILL), AFTER[1], IN_EVALUATION[0], AFTER[9], IN_EVALUATION[1]],
    ),
    "losses that learn and remember": (["loss=[ce,crd]", *OWN, PAIRS], "1 epoch", [AFTER[6], AFTER[8], AFTER[12]]),
    "features alone": (["loss=[fitnet,nst_poly]", "loss.ce.weight=0", *RATES], "0.0001 min", [AFTER[4]]),
    "a network that draws and remembers": (["loss=ce", "model._target_=tests.faults.small.Drawing"], "2 steps", [AFTER[3]]),
    "mixed images": (MIXED, "1 steps", [AFTER[8]]),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_as_one_left_alone(make_place: MakePlace, name: str) -> None:
    """However often either saves. What losses learn is in the checkpoints, and none of it in the student."""
    args, every, kills = RUNS[name]
    alone, killed = make_place(*args), make_place(*args, f"trainer.checkpoint_every={every}")
    assert alone.run() == 0, alone.text()
    for fault in kills:
        assert killed.run(*fault) == KILLED, killed.text()
    assert killed.run() == 0, killed.text()
    assert differing(outcome(killed.path), outcome(alone.path)) == []
    steps = [(row["kind"], row["step"]) for row in rows(killed.path)]
    train = [("train", step) for step in range(1, 13)]
    assert steps == [*train[:6], ("eval", 6), *train[6:], ("eval", 12)]
    assert not list(killed.path.rglob("*.tmp"))
    if "learn" in name:
        with safe_open(alone.path / "student.safetensors", framework="pt") as file:
            assert set(file.keys()) == set(resnet8(num_classes=10, in_channels=1).state_dict())


@pytest.mark.compiles
def test_compiled(make_place: MakePlace) -> None:
    """Interrupted while the step is compiled, then killed before a tail batch: compiled to the end, with an eager run's losses."""
    args = ["model._target_=tests.faults.small.Small", "loss=nst_poly", "cache.views=1", "data.limit=100"]
    args += ["trainer.checkpoint_every=2 steps"]  # 7 steps an epoch, the last of 4
    alone, killed, eager = (make_place(*args, f"trainer.compile={on}") for on in ("true", "true", "false"))
    assert (alone.run(), eager.run()) == (0, 0), alone.text()
    assert killed.run("signal_in_compilation", SIGINT) == 130, killed.text()
    assert killed.run("in_step", 7, "killed") == KILLED, killed.text()
    assert "continuing" not in killed.text()
    assert killed.run() == 0, killed.text()
    assert differing(outcome(killed.path), outcome(alone.path)) == []
    assert json.loads((killed.path / "summary.json").read_text())["compiled"]
    losses, expected = ([row["loss"] for row in rows(place.path)] for place in (alone, eager))
    assert losses == pytest.approx(expected, rel=1e-3)


def test_in_every_place_of_a_save(make_place: MakePlace, tmp_path: Path) -> None:
    """The old checkpoint or the new one is there, whole, whatever moment is chosen."""
    place, found = make_place(), []
    for number in range(100):
        folder = tmp_path / str(number)
        code = place.run("save_and_die", str(folder), number)
        latest = Checkpoints(folder, keep=1).latest()
        assert latest is not None
        value = latest[1]["weights"]
        assert torch.equal(value, torch.full((1000,), value[0].item()))
        found.append(value[0].item())
        if code == 0:
            break
        assert code == KILLED
    assert len(found) > 15
    assert found == sorted(found)
    assert set(found) == {1.0, 2.0}
