"""ImageNet end to end: a tree of JPEGs, a stop in the middle of an epoch. The networks of Table 3: tests/experiments."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Compose
from tests.data.samples import write_tree
from tests.outcome import differing, outcome

from nst.cli.train import run
from nst.data.batch import Batch
from nst.loop import Training
from nst.signals import Interrupted


def test_a_run_stopped_within_an_epoch_ends_as_one_that_was_not(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded by a worker process there and in the training process here, bit for bit the same."""
    write_tree(tmp_path / "images", images=30)
    settings = [
        *("data=imagenet", f"data.root={tmp_path}/images", "data.num_classes=3", "data.size=32", "data.resize=36"),
        *("model=resnet8", "teacher=none", "loss=ce", "optim.lr=0.01", "trainer.epochs=1", "trainer.batch_size=12"),
        *("trainer.log_every=2", "trainer.compile=false"),
    ]
    whole = run(compose(*settings, "trainer.workers=1"))
    assert whole["test"]["images"] == 45
    step = Training.step

    def stop_at_five(self: Training, batch: Batch, targets: Any) -> None:
        step(self, batch, targets)
        if self.progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    settings += ["trainer.workers=0", f"outputs={tmp_path}/again"]
    monkeypatch.setattr(Training, "step", stop_at_five)
    with pytest.raises(Interrupted):
        run(compose(*settings))
    monkeypatch.setattr(Training, "step", step)
    continued = run(compose(*settings))
    assert not differing(outcome(Path(whole["folder"])), outcome(Path(continued["folder"])))


def test_a_damaged_test_image_ends_a_run_before_it_trains(compose: Compose, tmp_path: Path) -> None:
    """Though the test part is looked at only at the end, where there is a validation part."""
    write_tree(tmp_path / "images", ("train", "val", "test"))
    (tmp_path / "images" / "test" / "class1" / "0.JPEG").write_bytes(b"no image")
    settings = [
        *("data=folder", f"data.root={tmp_path}/images", "data.num_classes=3", "data.size=16", "trainer.workers=0"),
        *("model=resnet8", "teacher=none", "loss=ce", "trainer.epochs=1"),
    ]
    with pytest.raises(ValueError, match=r"test/class1/0\.JPEG: the image cannot be decoded"):
        run(compose(*settings))
    assert not list(tmp_path.rglob("metrics.jsonl"))
