"""ImageNet end to end: a tree of a few thousand JPEGs, a stop in the middle of an epoch, the networks of Table 3 at 224."""

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

from nst import build
from nst.cli.train import run
from nst.data.batch import Batch
from nst.dist import Interrupted
from nst.distiller import Distiller, Targets
from nst.loop import Training
from nst.teacher import LiveTeacher, Teacher

CLASSES, TRAIN, TEST = 4, 2000, 200  # images


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
    """Teacher included; decoded by two worker processes there and in the training process here, bit for bit the same."""
    settings = [
        *("data=imagenet", f"data.root={tree}", f"data.num_classes={CLASSES}", "data.size=32", "data.resize=36"),
        *("model=resnet8", "teacher=resnet8", "loss=kd_nst_poly", "optim.lr=0.01", "trainer.epochs=1"),
        *("trainer.batch_size=250", "trainer.log_every=2", "trainer.heatmaps=false", "trainer.compile=false"),
        *("teacher.train.epochs=1", "teacher.train.optim.lr=0.02", "teacher.min_accuracy=30"),
    ]
    whole = run(compose(*settings, "trainer.workers=2"))
    assert whole["test"]["images"] == TEST
    step = Training.step

    def stop_at_five(self: Training, batch: Batch, targets: Any) -> None:
        step(self, batch, targets)
        if self.progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    settings += [f"teacher.weights={whole['teacher']['weights']}", "trainer.workers=0", f"outputs={tmp_path}/again"]
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


# Of the paper's Table 3; each besides the cross-entropy.
METHODS = {"student": [], "kd": ["kd"], "fitnet": ["fitnet"], "at": ["at"], "nst": ["nst_poly"]}
METHODS |= {"kd_fitnet": ["kd", "fitnet"], "kd_at": ["kd", "at"], "kd_nst": ["kd", "nst_poly"]}


class Known(Teacher):
    """Targets by the index of a batch's first image."""

    def __call__(self, batch: Batch) -> Targets:
        assert self.about is not None
        return self.about[str(int(batch.indices[0]))]


def test_all_methods_of_table_3_take_two_steps_at_224(compose: Compose, tree: Path) -> None:
    """ResNet-101 teaches Inception-BN; what it says of the four images is computed once for all methods."""
    last = "layers=[{teacher: last_pre_relu, student: last_pre_relu}]"
    settings = build.settings(
        compose(
            *("experiment=paper/imagenet", "loss=[kd,fitnet,at,nst_poly]", f"data.root={tree}"),
            *(f"data.num_classes={CLASSES}", "trainer.batch_size=2", "trainer.compile=false"),
            *(f"loss.fitnet.{last}", f"loss.at.{last}", f"loss.nst_poly.{last}"),
        )
    )
    networks = build.networks(settings)
    assert networks.teacher is not None
    loader = build.dataset(settings).split("train").loader(2, train=True)
    batches = [batch for _, batch in zip(range(2), loader.epoch(0), strict=False)]
    assert batches[0].images.shape == (2, 3, 224, 224)
    assert networks.student_shapes["last_pre_relu"] == (1024, 7, 7)
    assert networks.teacher_shapes["last_pre_relu"] == (2048, 7, 7)
    live = LiveTeacher(networks.teacher, networks.distiller.target_specs)
    known = {str(int(batch.indices[0])): live(batch) for batch in batches}
    terms = {term.name: term for term in networks.distiller.terms}

    for method, losses in METHODS.items():
        student = build.network("model", settings.model, seed=0)
        shapes = networks.student_shapes, networks.teacher_shapes
        distiller = Distiller(student, [terms["ce"], *(terms[name] for name in losses)], *shapes)
        training = Training(distiller, loader, **build.optimization(settings), settings=settings.trainer)
        for batch in batches:
            training.step(batch, known)
        values = training.means()  # raises for a loss or gradient that is not finite
        assert list(values["terms"]) == ["ce", *losses], method
        assert all(value > 0 for value in values["terms"].values()), method
