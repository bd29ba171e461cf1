"""Evaluation: each image once, in eval mode, whatever the batches."""

import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn

from nst.data.batch import Batch
from nst.dist import Dist
from nst.evaluate import evaluate

ONE = Dist(0, 1, torch.device("cpu"))


class Table(nn.Module):
    """Logits are the image itself; fails in training mode."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.flatten(1)


def batches(logits: Tensor, labels: Tensor, size: int) -> list[Batch]:
    none = torch.zeros(0, dtype=torch.int64)
    return [
        Batch(images, part, none, none)
        for images, part in zip(logits[..., None, None].split(size), labels.split(size), strict=True)
    ]


@pytest.mark.parametrize("size", [1, 4, 7, 25])
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


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(Table(), [], ONE)
