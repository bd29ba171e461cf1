"""Evaluation: each image once, in eval mode, whatever the batches."""

import json
from pathlib import Path

import pytest
import sklearn.metrics
import torch
from tests.conftest import Compose
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
def test_accuracy_and_loss_by_hand(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(25, 8, generator=generator), torch.randint(8, (25,), generator=generator)
    order = logits.argsort(1, descending=True)
    top1 = sum(int(order[i, 0] == labels[i]) for i in range(25)) * 4.0
    top5 = sum(int(labels[i] in order[i, :5]) for i in range(25)) * 4.0
    loss = -sum(float(logits[i].double().log_softmax(0)[labels[i]]) for i in range(25)) / 25
    model = Table().train()
    found = evaluate(model, batches(logits, labels, size), ONE)
    assert (found.top1, found.top5, found.images) == (top1, top5, 25)
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert model.training


def test_every_class_and_the_confusion_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=generator), torch.randint(4, (50,), generator=generator)
    labels[labels == 2] = 3  # a class without images
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    found = evaluate(Table(), batches(logits, labels, 7), ONE, confusion=confusion)
    answers = logits.argmax(1)
    assert confusion.tolist() == sklearn.metrics.confusion_matrix(labels, answers, labels=range(4)).tolist()
    assert found.class_images == torch.bincount(labels, minlength=4).tolist()
    recalls = sklearn.metrics.recall_score(labels, answers, labels=range(4), average=None, zero_division=0)
    assert found.class_top1[2] is None
    assert [top1 for top1 in found.class_top1 if top1 is not None] == pytest.approx(100 * recalls[[0, 1, 3]])


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
    seen: list[tuple[Tensor, Tensor]] = []

    def metric(*of: Tensor) -> float:
        seen.append((of[0], of[1]))
        return 7.5

    found = evaluate(Table(), batches(logits, labels, 4)[::-1], ONE, metrics={"own": metric})
    assert found.others == {"own": 7.5}
    assert found.as_dict()["own"] == 7.5
    assert torch.equal(seen[0][0], logits)
    assert torch.equal(seen[0][1], labels)


def test_metrics_of_a_run_are_logged_and_kept(compose: Compose, tiny: list[str]) -> None:
    """By the group, and a function of one's own; they are no part of a run's name."""
    own = "+metric.own={_target_: tests.test_evaluate.above, margin: 0.5}"
    summary = run(compose(*tiny, "loss=ce", "metric=[macro,calibration]", own, "data.validation=0.2"))
    assert {"macro", "calibration", "own"} <= summary["test"].keys()
    assert summary["test"]["own"] == 360
    lines = [json.loads(line) for line in (Path(summary["folder"]) / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "eval"][-1]
    assert {name: last[name] for name in ("top1", "macro", "own")} == {
        name: summary["last"][name] for name in ("top1", "macro", "own")
    }
    assert run(compose(*tiny, "loss=ce", "data.validation=0.2"))["was_finished"]
    with pytest.raises(ValueError, match=r"metric\.top1: the log has a value of this name"):
        run(compose(*tiny, "loss=ce", "+metric.top1={_target_: nst.evaluate.macro_accuracy}", "dry_run=true"))


def above(logits: Tensor, labels: Tensor, margin: float) -> float:
    """How many images there are, with an argument from the configuration."""
    return len(labels) if margin == 0.5 else 0.0
