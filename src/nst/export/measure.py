"""Cost of a network (parameters, FLOPs, latency), and the agreement of two networks on real images."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nst.data.batch import Split
from nst.export.formats import Forward

BATCH = 100  # images at a time when two networks are compared
WARM_UP = 3  # calls before the clock runs
SECONDS = 10.0  # about the longest that one batch size is timed
LEAST = 5  # timed calls, whatever they take


@dataclass(frozen=True)
class Latency:
    """Median milliseconds a call, over `calls` calls."""

    milliseconds: float
    calls: int


@dataclass(frozen=True)
class Agreement:
    """A file against the network in memory, on the same test images."""

    max_difference: float  # largest absolute difference of a logit
    top1: float  # percent
    same_class: float  # percent of the images to which both give the same class


@torch.no_grad()
def cost(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Parameters, bytes of parameters and statistics, FLOPs of one image.

    A multiplication and an addition count as two; convolutions and matrix products are counted.
    """
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image_shape))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "flops": counter.get_total_flops(),
    }


def sample_images(split: Split, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """At most `most` images without augmentation, evenly spaced over the split: normalised `[B, C, H, W]` and labels `[B]`."""
    indices = torch.linspace(0, len(split) - 1, min(most, len(split))).round().long()
    for part in indices.split(BATCH):
        yield split.render(part, torch.full_like(part, split.unaugmented)), split.labels[part]


@torch.no_grad()
def logits_of(network: Forward, images: list[Tensor]) -> Tensor:
    """All logits `[n, classes]`."""
    return torch.cat([network(batch) for batch in images])


def compare(expected: Tensor, found: Tensor, labels: Tensor) -> Agreement:
    """Logits `[n, classes]` of the network in memory and of a file."""
    answer = found.argmax(1)
    return Agreement(
        (found - expected).abs().max().item(),
        100 * (answer == labels).double().mean().item(),
        100 * (answer == expected.argmax(1)).double().mean().item(),
    )


def confusion_matrix(answers: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """`[classes, classes]` int64: images by label (row) and answer (column)."""
    return torch.bincount(labels * num_classes + answers, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_accuracies(confusion: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Name, number of images and accuracy in percent of each class that has images, the worst first."""
    found = [
        {"class": name, "images": sum(row), "top1": 100 * row[k] / sum(row)}
        for k, (name, row) in enumerate(zip(names, confusion.tolist(), strict=True))
        if sum(row)
    ]
    return sorted(found, key=lambda entry: entry["top1"])


@torch.no_grad()
def latencies(networks: Mapping[str, Forward], images: Tensor, repeats: int) -> dict[str, Latency]:
    """Median time of a call on `images` `[B, C, H, W]`; the networks take turns, so that drift hits all alike."""
    for network in networks.values():
        for _ in range(WARM_UP):
            network(images)
    times: dict[str, list[float]] = {name: [] for name in networks}
    start = time.perf_counter()
    for turn in range(repeats):
        for name, network in networks.items():
            before = time.perf_counter()
            network(images)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            times[name].append(time.perf_counter() - before)
        if turn + 1 >= LEAST and time.perf_counter() - start > SECONDS:
            break
    return {name: Latency(1000 * statistics.median(t), len(t)) for name, t in times.items()}
