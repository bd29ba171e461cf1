"""Mixup and cutmix: training images mixed with one another, a function of (seed, epoch, index) like every view.

torchvision's transforms mix the batch of one process, by one number from torch's global generator, so the images of a
run would depend on the number of ranks and on restarts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nst.data.batch import Batch, Loader, Split


@dataclass(frozen=True)
class Mixture:
    """How images are mixed with their partners."""

    share: Tensor  # [n] float32 in 0 … 1: λ, the weight of the image itself
    boxed: Tensor  # [n] bool: a box is replaced; else all is averaged
    centre: Tensor  # [n, 2] float32 in 0 … 1: of the box, by rows and columns

    def of(self, indices: Tensor) -> "Mixture":
        """That of some images."""
        return Mixture(self.share[indices], self.boxed[indices], self.centre[indices])

    def boxes(self, height: int, width: int) -> list[Tensor]:
        """Top, bottom, left, right [n] int64: a box of 1 − λ of the area, clipped at the border."""
        side, sides = (1 - self.share).sqrt(), []
        for axis, size in enumerate((height, width)):
            middle, half = self.centre[:, axis] * size, side * size / 2
            sides += [(middle + reach).round().clamp(0, size).long() for reach in (-half, half)]
        return sides

    def shares(self, height: int, width: int) -> Tensor:
        """[n] float32: λ for an image of this size, corrected where a box is clipped at the border."""
        top, bottom, left, right = self.boxes(height, width)
        kept = 1 - (bottom - top) * (right - left) / (height * width)
        return torch.where(self.boxed, kept, self.share)


def epoch_mixture(n: int, seed: int, epoch: int, mixup: float, cutmix: float) -> Mixture:
    """The mixing of each of n images in an epoch, by index: λ from Beta(α, α) with the α of mixup or cutmix (0: off)."""
    draw = np.random.default_rng([seed, epoch, 2])
    boxed = draw.random(n) < (0.5 if mixup and cutmix else float(cutmix > 0))
    share = np.where(boxed, draw.beta(cutmix or 1, cutmix or 1, n), draw.beta(mixup or 1, mixup or 1, n))
    centre = draw.random((n, 2), dtype=np.float32)
    return Mixture(torch.from_numpy(share).float(), torch.from_numpy(boxed), torch.from_numpy(centre))


class MixingLoader(Loader):
    """A loader whose training batches are mixed: mixup (Zhang et al., 2018), cutmix (Yun et al., 2019), or one of both.

    Images 2j and 2j + 1 of each global batch are partners, so that an image is rarely fetched from another rank's part; of an odd
    number, the last one stays unmixed. Each image has its own λ from Beta(α, α): mixup gives λ · image + (1 − λ) · partner,
    cutmix the image with a box of the partner that covers 1 − λ of it, clipped at the border. Labels become [B, classes]
    probabilities with these weights. With both, each image gets one of them with probability ½.
    """

    def __init__(self, loader: Loader, split: Split, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        """Nothing is drawn yet.

        Args:
            loader: of `split`, in training.
            mixup, cutmix: α of each; 0: off.
        """
        super().__init__(loader.schedule, loader.labels, loader.stream)
        self.split, self.num_classes, self.mixup, self.cutmix = split, num_classes, mixup, cutmix

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """As of the loader, mixed."""
        schedule = self.schedule
        order, views = schedule.plan(epoch)
        mixture = epoch_mixture(self.num_images, schedule.seed, epoch, self.mixup, self.cutmix)
        batches = zip(schedule.parts(first_step), super().epoch(epoch, first_step), strict=True)
        for step, (part, batch) in enumerate(batches, first_step):
            start = step * self.batch_size
            partners = partner_positions(part, start, min(start + self.batch_size, self.num_images))
            others = self.partner_images(batch, part, partners, order, views)
            yield self.mixed(batch, others, self.split.labels[order[partners]], mixture.of(order[part]))

    def partner_images(self, batch: Batch, part: slice, partners: Tensor, order: Tensor, views: Tensor) -> Tensor:
        """[B, C, H, W]: from the batch itself, except for one or two in another rank's part."""
        device = batch.images.device
        inside = (partners >= part.start) & (partners < part.stop)
        places = torch.where(inside, partners - part.start, 0)
        images = batch.images.index_select(0, places.to(device))
        if not bool(inside.all()):
            outside = partners[~inside]
            channels_last = batch.images.is_contiguous(memory_format=torch.channels_last)
            fetched = self.split.render(order[outside].to(device), views[outside].to(device), channels_last)
            images.index_copy_(0, (~inside).nonzero()[:, 0].to(device), fetched)
        return images

    def mixed(self, batch: Batch, others: Tensor, other_labels: Tensor, mixture: Mixture) -> Batch:
        """The batch mixed with `others` [B, C, H, W], whose labels are [B] int64 on the CPU."""
        images, device = batch.images, batch.images.device
        height, width = images.shape[2:]
        if self.cutmix:
            top, bottom, left, right = (side.to(device)[:, None] for side in mixture.boxes(height, width))
            rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
            in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
            kept = ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])
            boxed = mixture.boxed.to(device)[:, None, None, None]
            weight = torch.where(boxed, kept, mixture.share.to(device)[:, None, None, None])
        else:
            weight = mixture.share.to(device)[:, None, None, None]
        mixed = torch.lerp(others, images, weight, out=torch.empty_like(images))
        share = mixture.shares(height, width).to(device)[:, None]
        own, other = (F.one_hot(labels.to(device), self.num_classes) for labels in (batch.labels, other_labels))
        return batch._replace(images=mixed, labels=share * own + (1 - share) * other)


def partner_positions(part: slice, start: int, end: int) -> Tensor:
    """The partner of each position of an epoch's order in `part`, of the global batch from `start` to `end`: int64."""
    positions = torch.arange(part.start, part.stop)
    partners = start + ((positions - start) ^ 1)
    return torch.where(partners < end, partners, positions)
