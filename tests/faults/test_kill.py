"""SIGKILL anywhere, then the same command: the end is that of a run left alone, bit for bit."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.faults.conftest import Place
from tests.outcome import differing, outcome, rows

from nst.models import resnet8
from nst.storage.checkpoint import Checkpoints

KILLED = -9
EVERY_LOSS = "loss=[kd,at,fitnet,nst_linear,nst_poly,nst_gaussian]"
OFTEN = "trainer.checkpoint_every=2 steps"
MakePlace = Callable[..., Place]


@pytest.fixture(scope="module")
def undisturbed(make_place: MakePlace) -> dict[str, object]:
    """The outcome with all losses at once."""
    place = make_place(EVERY_LOSS)
    assert place.run() == 0, place.text()
    steps = [(row["kind"], row["step"]) for row in rows(place.path)]
    assert [step for kind, step in steps if kind == "train"] == list(range(1, 13))
    assert [step for kind, step in steps if kind == "eval"] == [6, 12]
    return outcome(place.path)


IN_EVALUATION = [("signal_in_evaluation", epoch, signal.SIGKILL) for epoch in (1, 2)]
KILLS = {
    "2 steps": [("in_step", 1, "killed"), IN_EVALUATION[0], ("in_step", 9, "killed"), IN_EVALUATION[1]],
    "1 epoch": [("in_step", 6, "killed"), ("in_step", 8, "killed"), ("in_step", 12, "killed")],
    "0.0001 min": [("in_step", 4, "killed")],
}


@pytest.mark.parametrize("every", KILLS)
def test_after_a_step_and_in_evaluation(make_place: MakePlace, undisturbed: dict[str, object], every: str) -> None:
    place = make_place(EVERY_LOSS, f"trainer.checkpoint_every={every}")
    for fault in KILLS[every]:
        assert place.run(*fault) == KILLED, place.text()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []
    assert not list(place.path.rglob("*.tmp"))


OWN = [
    f"+loss.{k}={{_target_: tests.kinds.{k}, weight: 1}}" for k in ("Learned", "Remembering", "Ramped", "SeveralLayers")
]
PAIRS = "+loss.SeveralLayers.layers=[{teacher: stage2, student: stage2}, {teacher: last, student: last}]"
FEATURES = ["loss=[fitnet,nst_poly]", "loss.ce.weight=0"]
RUNS = {
    "losses that learn and remember": ["loss=[ce,crd]", *OWN, PAIRS],
    "a network that draws and remembers": ["loss=ce", "model._target_=tests.faults.small.Drawing"],
    "recipe": ["loss=[kd,at]", "trainer.mixup=1.0", "trainer.cutmix=1.0", "teacher.precision=bf16", "trainer.ema=0.8"],
    "cached teacher": ["loss=[kd,at,nst_linear,nst_poly]", "cache.views=3"],
    "features alone": [*FEATURES, "optim=adamw", "optim.lr_factors={layer1: 0.1, loss.fitnet: 2}"],
}


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_carries(make_place: MakePlace, name: str) -> None:
    """A cache also while it is written. What losses learn is in the checkpoints, and none of it in the student."""
    alone, killed = make_place(*RUNS[name], OFTEN), make_place(*RUNS[name], OFTEN)
    assert alone.run() == 0, alone.text()
    if name == "cached teacher":
        assert killed.run("while_writing", 4, signal.SIGKILL) == KILLED, killed.text()
    assert killed.run("in_step", 3, "killed") == KILLED, killed.text()
    assert killed.run() == 0, killed.text()
    assert differing(outcome(killed.path), outcome(alone.path)) == []
    if name == "losses that learn and remember":
        with safe_open(alone.path / "student.safetensors", framework="pt") as file:
            assert set(file.keys()) == set(resnet8(num_classes=10, in_channels=1).state_dict())


@pytest.mark.compiles
def test_compiled(make_place: MakePlace) -> None:
    """Interrupted while the step is compiled, then killed before a tail batch: compiled to the end all the same."""
    small = ["model._target_=tests.faults.small.Small", "loss=nst_poly", "cache.views=1", "trainer.compile=true"]
    args = [*small, OFTEN, "data.limit=100"]  # 7 steps an epoch, the last of 4
    alone, killed = make_place(*args), make_place(*args)
    assert alone.run() == 0, alone.text()
    assert killed.run("signal_in_compilation", signal.SIGINT) == 130, killed.text()
    assert killed.run("in_step", 7, "killed") == KILLED, killed.text()
    assert "continuing" not in killed.text()
    assert killed.run() == 0, killed.text()
    assert differing(outcome(killed.path), outcome(alone.path)) == []
    assert json.loads((killed.path / "summary.json").read_text())["compiled"]


def test_on_either_of_two_ranks(make_place: MakePlace) -> None:
    """Each rank has BN statistics of its own; what is kept are the first one's, also of the averaged weights."""
    args = ["loss=kd_fitnet_nst_poly", OFTEN, "trainer.batch_size=18", "trainer.ema=0.8"]
    alone, killed = make_place(*args), make_place(*args)
    assert alone.ranks() == [0, 0], alone.text(0)
    for step, rank in ((3, 0), (6, 1)):
        codes = killed.ranks("in_step", step, "killed", rank)
        assert codes[rank] == KILLED
        assert codes[1 - rank] == 1
        lost = f"rank {rank} of 2 is gone: stopped, killed, out of memory or cut off?"
        assert lost in killed.text(1 - rank)
    assert killed.ranks() == [0, 0], killed.text(0)
    assert differing(outcome(killed.path), outcome(alone.path)) == []
    assert [row["step"] for row in rows(killed.path) if row["kind"] == "train"] == list(range(1, 13))


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
