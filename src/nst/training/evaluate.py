"""Accuracy of a network on a split."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.data.batch import Batch
from nst.precision import autocast
from nst.training.ranks import Ranks


@dataclass(frozen=True)
class Metrics:
    """Of one evaluation: cross-entropy, and accuracies in percent, each image counted once."""

    loss: float
    top1: float
    top5: float
    images: int


def correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many of `labels` [B] are among the `k` largest of `logits` [B, classes]."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).sum()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], ranks: Ranks, precision: str = "fp32") -> Metrics:
    """Evaluate this rank's batches in `eval()` mode and average over all ranks; the model's mode is restored.

    Raises:
        ValueError: if there is no image.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(4, device=ranks.device, dtype=torch.float64)
    try:
        for batch in batches:
            with autocast(ranks.device, precision):
                logits = model(batch.images)
            logits = logits.float()
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            hits = [correct(logits, batch.labels, k) for k in (1, 5)]
            sums += torch.stack([loss.double(), *(h.double() for h in hits), loss.new_tensor(len(batch.labels))])
    finally:
        model.train(training)
    loss_sum, top1, top5, images = ranks.sum(sums).tolist()
    if images == 0:
        raise ValueError("no images to evaluate on")
    return Metrics(loss_sum / images, 100 * top1 / images, 100 * top5 / images, int(images))
