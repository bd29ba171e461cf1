"""The interface of loaders and splits, and the batch they yield."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One rank's part of a global batch."""

    images: Tensor  # [B, C, H, W] float32, normalised, on the device
    labels: Tensor  # [B] int64; of mixed images [B, classes] float32, probabilities
    indices: Tensor  # [B] int64, position of the image in its split: the stable key of the image
    views: Tensor  # [B] int64, number of the image's view; in evaluation the identity view


class Loader(Protocol):
    """One rank's loader of a split. The global batch size fixes the number of steps, the same on every rank."""

    @property
    def num_images(self) -> int: ...  # in the whole split
    @property
    def batch_size(self) -> int: ...  # global
    @property
    def steps(self) -> int: ...  # per epoch; the last batch may be smaller, and empty on some ranks

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `first_step` on. Steps skipped cost nothing."""
        ...

    def sequential(self, views: Tensor, first_step: int = 0, stride: int = 1) -> Iterator[Batch]:
        """Every image once, in order, each in the view given for it (`views`: [num_images] int64).

        With `stride` only every `stride`-th batch from `first_step` on; the others cost nothing.
        """
        ...


class Split(Protocol):
    """The images of one part of a data set (training, validation or test)."""

    labels: Tensor  # [n] int64, on the CPU

    @property
    def num_views(self) -> int | None: ...  # None: cannot be enumerated
    @property
    def identity(self) -> int: ...  # number of the view used in evaluation
    @property
    def view_key(self) -> str: ...  # identity of the view numbering, for a manifest
    @property
    def fingerprint(self) -> str: ...  # SHA-256 of the images and labels, hex

    def __len__(self) -> int: ...

    def view_subset(self, k: int) -> Tensor:
        """[n, k]: the k views of each image in a cache with k views per image. The same for every seed."""
        ...

    def render(self, indices: Tensor, views: Tensor, channels_last: bool = False) -> Tensor:
        """Normalised images [B, C, H, W] float32 for any (index, view) pairs, on the device of `indices`."""
        ...

    def loader(
        self,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        views: Tensor | None = None,
        workers: int = 0,
    ) -> Loader:
        """One rank's loader of this split.

        Args:
            batch_size: images in a global batch, over all ranks.
            train: shuffle and draw views by (seed, epoch); else every image in order, in its identity view.
            views: [n, K] from `view_subset(K)`: show each image in these, in turn.
            workers: processes that decode images, where there are any to decode.
        """
        ...
