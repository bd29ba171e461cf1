"""Data sets too large for memory: images are read, decoded and augmented as they are needed, in worker processes."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from nst.data.augment import UNAUGMENTED, Augmentation
from nst.data.batch import Batch, Loader, Schedule
from nst.data.decode import MAX_PIXELS, decode, scale_and_shift
from nst.data.encoded import Encoded
from nst.data.workers import Workers


class EncodedSplit:
    """Encoded images on disk.

    An image's views cannot be enumerated: an epoch draws a 63-bit view number for each image from (seed, epoch, index), and the
    augmentation is drawn from (index, view).

    Args:
        source: the encoded images.
        rows: [n] int64, which row of the source each image of this split is.
        labels: [n] int64.
        augmentation: (pixels, index, view) → [3, size, size].
        mean, std: of the 3 channels, on the scale 0 … 1.
        max_pixels: of one image; one with more, by its header, is an error.
    """

    def __init__(
        self,
        source: Encoded,
        rows: Tensor,
        labels: Tensor,
        augmentation: Augmentation,
        mean: Sequence[float],
        std: Sequence[float],
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.source, self.rows, self.labels, self.augmentation = source, rows, labels, augmentation
        self.mean, self.std, self.max_pixels = tuple(mean), tuple(std), max_pixels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_views(self) -> None:
        return None

    @property
    def unaugmented(self) -> int:
        return UNAUGMENTED

    @property
    def view_key(self) -> str:
        return self.augmentation.key

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the images' files and the labels, hex. Digests are cached: see `file_digests`."""
        return self._fingerprint

    @cached_property  # behind a property, since `Split` declares one
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.fingerprint(self.rows).encode())
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def view_subset(self, k: int) -> Tensor:
        """[n, k] int64: views 0 … k − 1 of each image.

        Augmentation is drawn from (index, view), so these are k random crops of each image, the same for every seed and
        different for every image; those for k are among those for k + 1.
        """
        if k < 1:
            raise ValueError(f"views per image: {k}; it must be at least 1")
        return torch.arange(k).expand(len(self), k)

    def pixels(self, indices: Tensor, views: Tensor) -> Tensor:
        """[B, 3, size, size] uint8, channels_last. Raises ValueError, naming the file, for a bad image."""
        size = self.augmentation.size
        images = torch.empty(len(indices), size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        for image, index, view in zip(images, indices.tolist(), views.tolist(), strict=True):
            row = int(self.rows[index])
            data = self.source.read(row)
            try:
                image.copy_(self.augmentation(decode(data, 3, self.max_pixels), index, view))
            except ValueError as error:
                raise ValueError(f"{self.source.where(row)}: the image {error}") from None
        return images

    def render(self, indices: Tensor, views: Tensor, channels_last: bool = False) -> Tensor:
        """Normalised images [B, 3, size, size] float32 for (index, view) pairs, on the device of `indices`."""
        normalise = Normaliser(self, indices.device, channels_last)
        return normalise(self.pixels(indices, views).to(indices.device))

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
    ) -> "EncodedLoader":
        """A loader of this split; `workers` as in `EncodedLoader`, `views` [n, K] as in `Schedule`."""
        schedule = Schedule(len(self), batch_size, train, seed, rank, world, None, UNAUGMENTED, subset=views)
        return EncodedLoader(self, schedule, torch.device(device), channels_last, workers)


class Normaliser:
    """Pixels of a split → float32, on a device; its constants are moved there once."""

    def __init__(self, split: EncodedSplit, device: torch.device, channels_last: bool) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.scale, self.shift = (v.to(device)[:, None, None] for v in scale_and_shift(split.mean, split.std))

    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, 3, size, size] uint8 → float32."""
        return pixels.to(torch.float32, memory_format=self.layout).mul_(self.scale).add_(self.shift)


class EncodedLoader(Loader):
    """Batches of an `EncodedSplit`, prefetched and decoded in `workers` processes (0: on demand, in this one)."""

    def __init__(
        self, split: EncodedSplit, schedule: Schedule, device: torch.device, channels_last: bool, workers: int
    ) -> None:
        super().__init__(schedule)
        self.device = device
        self.normalise, self.labels = Normaliser(split, device, channels_last), split.labels.to(device)
        self.workers = Workers(split.pixels, workers, keep=schedule.train, pin=device.type == "cuda")

    def batches(self, order: Tensor, views: Tensor, parts: Iterable[slice]) -> Iterator[Batch]:
        parts = list(parts)
        tasks = [(order[part].numpy(), views[part].numpy()) for part in parts]
        order, views = order.to(self.device), views.to(self.device)  # one copy an epoch
        for part, pixels in zip(parts, self.workers.run(tasks), strict=True):
            images, indices = self.normalise(pixels.to(self.device, non_blocking=True)), order[part]
            yield Batch(images, self.labels[indices], indices, views[part])
