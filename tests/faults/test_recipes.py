"""SIGKILL in runs with the keys of today's recipes: the end is that of a run left alone, bit for bit."""

import signal
from pathlib import Path

import pytest
from scripts.outcome import differing, outcome
from tests.data.samples import write_tree
from tests.faults.conftest import TINY, Place, Server

from nst.runs.checkpoint import Checkpoints

KILLED = -9
RECIPES = {
    "ema": ["loss=[ce,nst_poly]", "trainer.ema=0.8"],
    "mixing": ["loss=[kd,at]", "trainer.mixup=1.0", "trainer.cutmix=1.0", "teacher.precision=bf16"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_killed(server: Server, tiny: list[str], tmp_path: Path, name: str) -> None:
    args = [*tiny, *RECIPES[name], "loss.ce.label_smoothing=0.1", "trainer.checkpoint_every=2 steps"]
    alone, killed = Place(server, tmp_path / "alone", args), Place(server, tmp_path / "killed", args)
    assert alone.run() == 0, alone.text()
    assert [killed.run("die_after_step", step) for step in (3, 8)] == [KILLED, KILLED], killed.text()
    assert killed.run() == 0, killed.text()
    assert differing(outcome(killed.path), outcome(alone.path)) == []


def test_averaged_weights_on_two_ranks(server: Server, tiny: list[str], tmp_path: Path) -> None:
    """Each rank has BN statistics of its own; what is kept are the first one's, also after a restart."""
    args = [*tiny, "loss=ce", "trainer.ema=0.8", "trainer.checkpoint_every=2 steps"]
    alone, killed = Place(server, tmp_path / "alone", args), Place(server, tmp_path / "killed", args)
    assert alone.ranks() == [0, 0], alone.text(0)
    assert killed.ranks("die_after_step", 5, 1)[1] == KILLED
    assert killed.ranks() == [0, 0], killed.text(0)
    assert differing(outcome(killed.path), outcome(alone.path)) == []
    assert "ema" in Checkpoints(alone.path).latest()[1]  # pyright: ignore[reportOptionalSubscript]


@pytest.fixture(scope="module")
def photographs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a small run on images that are decoded and cropped, with a teacher: three epochs of three steps."""
    root = tmp_path_factory.mktemp("photographs")
    write_tree(root / "images")
    small = ["data.name=digits", f"data.root={root}/images", "data.num_classes=3", "data.size=16", "data.resize=20"]
    args = [
        *TINY,
        "data=folder",
        *small,
        "data.limit=null",
        "trainer.batch_size=6",
        "trainer.epochs=3",
        "trainer.workers=0",
    ]
    place = Place(server, root / "teacher", [*args, "loss=ce", "model=resnet14"])
    assert place.run() == 0, place.text()
    weights = place.path / "student.safetensors"
    return [*args, "teacher=resnet14", f"teacher.weights={weights}", "teacher.min_accuracy=0"]


def test_cached_crops(server: Server, photographs: list[str], tmp_path: Path) -> None:
    """Killed while the cache is written, then in training."""
    stored = ["loss=[kd,at]", "cache.views=2", "trainer.checkpoint_every=2 steps"]
    alone = Place(server, tmp_path / "alone", [*photographs, *stored])
    killed = Place(server, tmp_path / "killed", alone.args)
    assert alone.run() == 0, alone.text()
    assert killed.run("while_writing", 4, signal.SIGKILL) == KILLED, killed.text()
    assert killed.run("die_after_step", 4) == KILLED, killed.text()
    assert "% there" in killed.text()
    assert killed.run() == 0, killed.text()
    assert differing(outcome(killed.path), outcome(alone.path)) == []
