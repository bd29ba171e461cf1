"""SIGKILL anywhere, then the same command: the end is that of a run left alone, bit for bit."""

import json
import signal
from pathlib import Path

import pytest
from safetensors import safe_open
from scripts.outcome import differing, outcome, rows
from tests.faults.conftest import Place, Server

from nst.models import resnet8

LOSSES = ["kd", "at", "fitnet", "nst_linear", "nst_poly", "nst_gaussian"]
KILLED = -9


@pytest.fixture(scope="module")
def undisturbed(server: Server, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The outcome with all losses at once."""
    place = Place(server, tmp_path_factory.mktemp("undisturbed"), [*tiny, f"loss=[{','.join(LOSSES)}]"])
    assert place.run() == 0, place.text()
    found = rows(place.path)
    assert [row["step"] for row in found if row["kind"] == "train"] == list(range(1, 13))
    assert [row["step"] for row in found if row["kind"] == "eval"] == [6, 12]
    return outcome(place.path)


@pytest.mark.parametrize(
    ("every", "steps"),
    [("2 steps", range(1, 13)), ("1 epoch", [3, 6, 8]), ("1 step", [1, 6, 11]), ("0.0001 min", [4])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_killed_after_a_step(
    server: Server, tiny: list[str], tmp_path: Path, undisturbed: dict[str, object], every: str, steps: list[int]
) -> None:
    args = [*tiny, f"loss=[{','.join(LOSSES)}]", f"trainer.checkpoint_every={every}"]
    place = Place(server, tmp_path / "killed", args)
    for step in steps:
        assert place.run("die_after_step", step) == KILLED, place.text()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []


@pytest.mark.parametrize("loss", [*LOSSES, "ce"])
def test_each_loss_alone(server: Server, tiny: list[str], tmp_path: Path, loss: str) -> None:
    args = [*tiny, f"loss={loss}", "trainer.checkpoint_every=2 steps"]
    alone, killed = Place(server, tmp_path / "alone", args), Place(server, tmp_path / "killed", args)
    assert alone.run() == 0, alone.text()
    assert [killed.run("die_after_step", step) for step in (3, 8)] == [KILLED, KILLED], killed.text()
    assert killed.run() == 0, killed.text()
    assert differing(outcome(killed.path), outcome(alone.path)) == []


KINDS = {
    "Learned": [],
    "Remembering": [],
    "Ramped": [],
    "SeveralLayers": ["+loss.own.layers=[{teacher: stage2, student: stage2}, {teacher: last, student: last}]"],
}


def own_loss(kind: str) -> list[str]:
    """A loss of tests/kinds.py beside the cross-entropy."""
    return ["loss=ce", f"+loss.own._target_=tests.kinds.{kind}", "+loss.own.weight=1.0", *KINDS.get(kind, [])]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_that_learn_and_remember(server: Server, tiny: list[str], tmp_path: Path, kind: str) -> None:
    """Their parameters and buffers go on as they were; none of it is in the student."""
    args = [*tiny, *own_loss(kind), "trainer.checkpoint_every=2 steps"]
    alone, killed = Place(server, tmp_path / "alone", args), Place(server, tmp_path / "killed", args)
    assert alone.run() == 0, alone.text()
    assert [killed.run("die_after_step", step) for step in (3, 8)] == [KILLED, KILLED], killed.text()
    assert killed.run() == 0, killed.text()
    assert differing(outcome(killed.path), outcome(alone.path)) == []
    with safe_open(alone.path / "student.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(resnet8(num_classes=10, in_channels=1).state_dict())


def test_a_network_that_draws_and_remembers_by_itself(server: Server, tiny: list[str], tmp_path: Path) -> None:
    """From numpy and `random`; in a buffer without a place in the state dict, and in `get_extra_state`."""
    args = [*tiny, "loss=ce", "model._target_=tests.faults.small.Drawing", "trainer.checkpoint_every=2 steps"]
    alone, killed = Place(server, tmp_path / "alone", args), Place(server, tmp_path / "killed", args)
    assert alone.run() == 0, alone.text()
    assert [killed.run("die_after_step", step) for step in (3, 8)] == [KILLED, KILLED], killed.text()
    assert killed.run() == 0, killed.text()
    assert differing(outcome(killed.path), outcome(alone.path)) == []


def test_a_loss_whose_buffers_differ_between_ranks_is_refused(server: Server, tiny: list[str], tmp_path: Path) -> None:
    place = Place(server, tmp_path / "here", [*tiny, *own_loss("Unequal")])
    assert place.ranks() == [1, 1]
    assert "loss.own: its buffer seen differs between ranks" in place.texts()


def test_stored_knowledge(server: Server, tiny: list[str], tmp_path: Path) -> None:
    """Killed while the teacher cache is written, then in training."""
    args = [*tiny, "loss=[kd,at,nst_linear,nst_poly]", "cache.views=3"]
    alone = Place(server, tmp_path / "alone", [*args, "trainer.checkpoint_every=2 steps"])
    killed = Place(server, tmp_path / "killed", alone.args)
    assert alone.run() == 0, alone.text()
    assert killed.run("while_writing", 4, signal.SIGKILL) == KILLED, killed.text()
    assert [killed.run("die_after_step", step) for step in (3, 8)] == [KILLED, KILLED], killed.text()
    assert killed.run() == 0, killed.text()
    assert differing(outcome(killed.path), outcome(alone.path)) == []


def test_killed_in_evaluation_and_while_saving(
    server: Server, tiny: list[str], tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    args = [*tiny, f"loss=[{','.join(LOSSES)}]", "trainer.checkpoint_every=2 steps"]
    place = Place(server, tmp_path / "killed", args)
    assert place.run("die_in_evaluation", 1) == KILLED, place.text()
    for step, point in ((8, 6), (8, 9), (10, 14)):  # half of a checkpoint, before its rename, before the marker's
        assert place.run("die_at_point", step, point) == KILLED, place.text()
    assert place.run("die_in_evaluation", 2) == KILLED, place.text()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []
    assert not list(place.path.rglob("*.tmp"))


@pytest.mark.compiles
def test_compiled(server: Server, tiny: list[str], tmp_path: Path) -> None:
    """Interrupted while the step is compiled, then killed, once before a tail batch: compiled to the end all the same."""
    small = ["model._target_=tests.faults.small.Small", "loss=nst_poly", "cache.views=1"]
    often = [
        "data.limit=100",
        "trainer.compile=true",
        "trainer.checkpoint_every=2 steps",
    ]  # 7 steps an epoch, the last of 4
    args = [*tiny, *small, *often]
    alone, killed = Place(server, tmp_path / "alone", args), Place(server, tmp_path / "killed", args)
    assert alone.run() == 0, alone.text()
    assert killed.run("signal_in_compilation", signal.SIGINT) == 130, killed.text()
    assert killed.run("die_after_step", 7) == KILLED, killed.text()
    assert "continuing" not in killed.text()
    assert killed.run() == 0, killed.text()
    assert "continuing after step 6 of 14" in killed.text()
    assert json.loads((killed.path / "summary.json").read_text())["compiled"] is True
    assert differing(outcome(killed.path), outcome(alone.path)) == []


def test_two_ranks_killed(server: Server, tiny: list[str], tmp_path: Path) -> None:
    args = [*tiny, "loss=kd_fitnet_nst_poly", "trainer.checkpoint_every=2 steps", "trainer.batch_size=18"]
    alone, killed = Place(server, tmp_path / "alone", args), Place(server, tmp_path / "killed", args)
    assert alone.ranks() == [0, 0], alone.text(0)
    for step, rank in ((3, 0), (6, 1), (9, 0)):
        codes = killed.ranks("die_after_step", step, rank)
        assert codes[rank] == KILLED
        assert codes[1 - rank] == 1
    assert killed.ranks() == [0, 0], killed.text(0)
    assert differing(outcome(killed.path), outcome(alone.path)) == []
    assert [row["step"] for row in rows(killed.path) if row["kind"] == "train"] == list(range(1, 13))
