"""Data sets that fit in memory: one uint8 tensor on the device; crop, flip and normalisation run on whole batches."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nst.data.batch import Split, Stream
from nst.data.decode import scale_and_shift
from nst.data.views import ViewScheme, view_subset


class MemorySplit(Split):
    """Images of one size, in memory.

    Args:
        images: [n, C, size, size] uint8.
        labels: [n] int64.
        scheme: the views of an image.
        mean, std: of the C channels, on the scale 0 … 1.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, scheme: ViewScheme, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.images, self.labels, self.scheme = images, labels, scheme
        self.mean, self.std = tuple(mean), tuple(std)
        self.num_views, self.unaugmented, self.view_key = scheme.num_views, scheme.unaugmented, scheme.key
        self._renderers: dict[tuple[torch.device, bool], Renderer] = {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, labels and pixels, hex."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.labels.contiguous().numpy().data)
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()

    def view_subset(self, k: int) -> Tensor:
        """[n, k] int16: k distinct views of each image, the same for every seed."""
        return view_subset(len(self), k, self.scheme.num_views)

    def renderer(self, device: torch.device | str, channels_last: bool = False) -> "Renderer":
        """The split on a device, put there once."""
        key = (torch.device(device), channels_last)
        if key not in self._renderers:
            self._renderers[key] = Renderer(self, *key)
        return self._renderers[key]

    def render(self, indices: Tensor, views: Tensor, channels_last: bool = False) -> Tensor:
        """As `Split.render`."""
        return self.renderer(indices.device, channels_last)(indices, views)

    def stream(self, device: torch.device, channels_last: bool, workers: int, keep: bool) -> Stream:
        """As `Split.stream`. Nothing is decoded, so `workers` is ignored."""
        render = self.renderer(device, channels_last)

        def images(order: Tensor, views: Tensor, parts: Sequence[slice]) -> Iterator[Tensor]:
            order, views = order.to(device), views.to(device)  # one copy an epoch
            return (render(order[part], views[part]) for part in parts)

        return images


class Renderer:
    """(index, view) pairs → normalised images, by one gather over all windows of the padded images.

    On the CPU this uses numpy: one thread is faster than torch on two cores, and it does not wait for others on a busy machine.
    """

    def __init__(self, split: MemorySplit, device: torch.device, channels_last: bool) -> None:
        self.scheme, self.channels_last = split.scheme, channels_last
        size = split.scheme.size
        layout = torch.channels_last if channels_last else torch.contiguous_format
        padded = split.scheme.padded(split.images.to(device)).contiguous(memory_format=layout)
        windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # [n, C, dy, dx, size, size], a view: no copy
        inner = (4, 5, 1) if channels_last else (1, 4, 5)
        self.windows = windows.permute(0, 2, 3, *inner)  # [n, dy, dx, …]: an image as it will lie in memory
        # an image as lines along which the normalisation repeats: H lines of W·C values, or C lines of H·W
        channels = len(split.mean)
        self.lines = (size, size * channels) if channels_last else (channels, size * size)
        repeats, shape = (size, (-1,)) if channels_last else (1, (-1, 1))
        affine = (v.repeat(repeats).reshape(shape).to(device) for v in scale_and_shift(split.mean, split.std))
        self.scale, self.shift = affine
        columns = torch.arange(size * channels if channels_last else size)
        self.mirror = columns.reshape(size, -1).flip(0).flatten().numpy()  # takes a line of pixels backwards
        self.on_cpu = device.type == "cpu"

    def __call__(self, indices: Tensor, views: Tensor) -> Tensor:
        """indices, views: [B] int64 → [B, C, size, size] float32, contiguous in the memory format chosen."""
        images = self._by_numpy(indices, views) if self.on_cpu else self._by_torch(indices, views)
        return images.permute(0, 3, 1, 2) if self.channels_last else images

    def _by_torch(self, indices: Tensor, views: Tensor) -> Tensor:
        dy, dx, mirrored = self.scheme.decode(views)
        crops = self.windows[indices, dy, dx]
        if self.scheme.flip:
            columns = 2 if self.channels_last else 3
            crops = torch.where(mirrored[:, None, None, None], crops.flip(columns), crops)
        images = crops.float().contiguous()
        images.view(len(crops), *self.lines).mul_(self.scale).add_(self.shift)
        return images

    def _by_numpy(self, indices: Tensor, views: Tensor) -> Tensor:
        dy, dx, mirrored = (part.numpy() for part in self.scheme.decode(views))
        crops = self.windows.numpy()[indices.numpy(), dy, dx]
        if self.scheme.flip:
            pixels = crops.reshape(len(crops), *self.lines) if self.channels_last else crops
            pixels[mirrored] = pixels[mirrored].take(self.mirror, axis=-1)
        lines = crops.reshape(len(crops), *self.lines).astype(np.float32)
        lines *= self.scale.numpy()
        lines += self.shift.numpy()
        return torch.from_numpy(lines.reshape(crops.shape))
