"""ImageNet end to end: a tree of JPEGs, a stop in the middle of an epoch. The networks of Table 3: tests/experiments."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Compose
from tests.data.samples import encode, noise

from nst.cli.train import run
from nst.data.batch import Batch
from nst.loop import Training
from nst.signals import Interrupted

CLASSES, TRAIN, TEST = 4, 400, 80  # images


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of small JPEGs; each class has its own brightness, so that there is something to learn."""
    root = tmp_path_factory.mktemp("imagenet")
    for label in range(CLASSES):
        files = [encode((pixels // 4 + 48 * label).astype(np.uint8), "JPEG") for pixels in noise(8, 40, label)]
        for split, images in (("train", TRAIN // CLASSES), ("val", TEST // CLASSES)):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(images):
                (folder / f"{i}.JPEG").write_bytes(files[i % len(files)])
    return root


def test_a_run_stopped_within_an_epoch_ends_as_one_that_was_not(
    compose: Compose, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded by a worker process there and in the training process here, bit for bit the same."""
    settings = [
        *("data=imagenet", f"data.root={tree}", f"data.num_classes={CLASSES}", "data.size=32", "data.resize=36"),
        *("model=resnet8", "teacher=none", "loss=ce", "optim.lr=0.01", "trainer.epochs=1", "trainer.batch_size=50"),
        *("trainer.log_every=2", "trainer.heatmaps=false", "trainer.compile=false"),
    ]
    whole = run(compose(*settings, "trainer.workers=1"))
    assert whole["test"]["images"] == TEST
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

    weights = [load_file(Path(it["folder"]) / "student.safetensors") for it in (whole, continued)]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    assert logged(continued) == logged(whole)
    assert continued["test"] == whole["test"]


def logged(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's log without the clock."""
    lines = (Path(summary["folder"]) / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "timing"} for line in lines]
