"""Evaluation: each image once, in eval mode, whatever the batches."""

from pathlib import Path

import pytest
import sklearn.metrics
import torch
from tests.conftest import Compose
from tests.outcome import rows
from torch import Tensor, nn

from nst.cli.train import run
from nst.data.batch import Batch
from nst.dist import Dist
from nst.evaluate import calibration_error, evaluate, macro_accuracy

ONE = Dist(0, 1, torch.device("cpu"))


class Table(nn.Module):
    """Logits are the image itself; fails in training mode."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.flatten(1)


def batches(logits: Tensor, labels: Tensor, size: int) -> list[Batch]:
    places = torch.arange(len(labels))
    parts = (logits[..., None, None].split(size), labels.split(size), places.split(size))
    return [Batch(images, part, at, torch.zeros_like(at)) for images, part, at in zip(*parts, strict=True)]


@pytest.mark.parametrize("size", [1, 7])
def test_accuracies_loss_and_the_confusion_matrix(size: int) -> None:
    """Of all images and of each class, one of which has none."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 8, generator=generator), torch.randint(8, (50,), generator=generator)
    labels[labels == 2] = 3
    confusion, model = torch.zeros(8, 8, dtype=torch.int64), Table().train()
    found = evaluate(model, batches(logits, labels, size), ONE, confusion=confusion)
    assert model.training
    top1, top5 = (100 * sklearn.metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(8)) for k in (1, 5))
    assert (found.top1, found.top5, found.images) == (pytest.approx(top1), pytest.approx(top5), 50)
    assert found.loss == pytest.approx(sklearn.metrics.log_loss(labels, logits.double().softmax(1), labels=range(8)))
    answers = logits.argmax(1)
    assert confusion.tolist() == sklearn.metrics.confusion_matrix(labels, answers, labels=range(8)).tolist()
    assert found.class_images == torch.bincount(labels, minlength=8).tolist()
    recalls = sklearn.metrics.recall_score(labels, answers, labels=range(8), average=None, zero_division=0)
    assert found.class_top1.pop(2) is None
    assert found.class_top1 == pytest.approx([100 * recall for i, recall in enumerate(recalls) if i != 2])


def test_metrics_by_hand() -> None:
    """Two classes of 3 and 1 images: 2 of 3 and 0 of 1 are right; a third class does not occur."""
    logits = torch.tensor([[4.0, 0, 0], [4, 0, 0], [0, 4, 0], [4, 0, 0]])
    labels = torch.tensor([0, 0, 0, 1])
    assert macro_accuracy(logits, labels) == pytest.approx(100 / 3)
    confidence = 1 / (1 + 2 * 2.718281828459045**-4)
    assert calibration_error(logits, labels) == pytest.approx(100 * abs(0.5 - confidence))
    mixed = torch.tensor([[4.0, 0, 0], [0.1, 0, 0]])  # two bins, one wrong and one right
    low = 1 / (1 + 2 * 2.718281828459045**-0.1)
    assert calibration_error(mixed, torch.tensor([1, 0])) == pytest.approx(50 * (confidence + 1 - low), rel=1e-6)


def test_a_metric_sees_all_images_in_the_order_of_the_split() -> None:
    logits, labels = torch.randn(9, 4), torch.randint(4, (9,))
    seen: list[tuple[Tensor, ...]] = []
    own = {"own": lambda *of: seen.append(of) or 7.5}
    found = evaluate(Table(), batches(logits, labels, 4)[::-1], ONE, metrics=own)
    assert found.as_dict()["own"] == 7.5
    assert torch.equal(seen[0][0], logits)
    assert torch.equal(seen[0][1], labels)


def test_metrics_of_a_run_are_logged_and_kept(compose: Compose, tiny: list[str]) -> None:
    """By the group, and a function of one's own; they are no part of a run's name."""
    own = "+metric.own={_target_: tests.test_evaluate.above, margin: 0.5}"
    summary = run(compose(*tiny, "loss=ce", "metric=[macro,calibration]", own, "data.validation=0.2"))
    assert {"macro", "calibration", "own"} <= summary["test"].keys()
    assert summary["test"]["own"] == 360
    last = rows(Path(summary["folder"]))[-1]
    assert all(last[name] == summary["last"][name] for name in ("top1", "macro", "own"))
    assert run(compose(*tiny, "loss=ce", "data.validation=0.2"))["was_finished"]
    with pytest.raises(ValueError, match=r"metric\.top1: the log has a value of this name"):
        run(compose(*tiny, "loss=ce", "+metric.top1={_target_: nst.evaluate.macro_accuracy}", "dry_run=true"))


def above(logits: Tensor, labels: Tensor, margin: float) -> float:
    """How many images there are, with an argument from the configuration."""
    return len(labels) if margin == 0.5 else 0.0
