"""Data sets that fit in memory: one uint8 tensor on the device; crop, flip and normalisation run on whole batches."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nst.data.batch import Split, check, scale_and_shift


@dataclass(frozen=True)
class ViewScheme:
    """Crops of `size` from an image padded by `pad` on each side, mirrored or not; see docs/data.md for their numbers.

    The border is zero ("constant") or the image mirrored at its edge without repeating it ("reflect"). Raises ValueError for a value out
    of range, by the key `data.…`.
    """

    size: int
    pad: int
    flip: bool
    padding_mode: str = "constant"

    def __post_init__(self) -> None:
        check(self, padding_mode=("constant", "reflect"), flip=(True, False))
        check(self, pad=range(64 if self.padding_mode == "constant" else min(64, self.size)))


@dataclass(eq=False)
class MemorySplit(Split):
    """Images of one size, in memory: [n, C, size, size] uint8, with labels [n] int64; ValueError for another type or shape."""

    images: Tensor
    labels: Tensor
    scheme: ViewScheme
    mean: Sequence[float]
    std: Sequence[float]

    by_numpy = True  # on the CPU; nearly twice as fast as torch's gather, in one thread

    def __post_init__(self) -> None:
        n, size, pad = len(self.images), self.scheme.size, self.scheme.pad
        found = (self.images.dtype, tuple(self.images.shape), self.labels.dtype, tuple(self.labels.shape))
        needed = (torch.uint8, (n, len(self.mean), size, size), torch.int64, (n,))
        if found != needed:
            raise ValueError(f"types and shapes of images and labels are {found}; they must be {needed}")
        places, sides = (2 * pad + 1) ** 2, 2 if self.scheme.flip else 1
        self.num_views, self.unaugmented = places * sides, places // 2 * sides
        border = "reflect" if self.scheme.padding_mode == "reflect" else ""
        self.view_key = f"size{size}-{border}pad{pad}-{'flip' if self.scheme.flip else 'noflip'}"
        self._windows: dict[tuple[torch.device, bool], tuple[Tensor, Tensor, Tensor]] = {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, labels and pixels, hex."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for values in (self.labels, self.images):
            digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()

    def view_subset(self, k: int) -> Tensor:
        """[n, k] int16: k distinct views of each image, ascending. Raises ValueError if there are fewer."""
        most = self.num_views or 1
        if not 1 <= k <= most:
            raise ValueError(f"views per image: {k}; this data set has 1 to {most}")
        rows = np.tile(np.arange(most, dtype=np.int16), (len(self), 1))
        np.random.default_rng(0x5EED).permuted(rows, axis=1, out=rows)
        return torch.from_numpy(np.sort(rows[:, :k], axis=1))

    def windows(self, device: torch.device, channels_last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """All crops [n, dy, dx, …], each as it will lie in memory, and scale and shift of its lines; made once for a device."""
        key, size = (device, channels_last), self.scheme.size
        if key not in self._windows:
            border = [(0, 0), (0, 0), *[(self.scheme.pad,) * 2] * 2]
            padded = torch.from_numpy(np.pad(self.images.numpy(), border, mode=self.scheme.padding_mode)).to(device)  # type: ignore[call-overload]
            padded = padded.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
            windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # [n, C, dy, dx, size, size], a view: no copy
            # normalisation repeats along the lines of an image: H lines of W·C values, or C lines of H·W
            repeats, shape, inner = (size, (-1,), (4, 5, 1)) if channels_last else (1, (-1, 1), (1, 4, 5))
            scale, shift = (v.repeat(repeats).reshape(shape) for v in scale_and_shift(self.mean, self.std))
            self._windows[key] = windows.permute(0, 2, 3, *inner), scale.to(device), shift.to(device)
        return self._windows[key]

    def render(self, indices: Tensor, views: Tensor, channels_last: bool = False) -> Tensor:
        """As `Split.render`."""
        windows, scale, shift = self.windows(indices.device, channels_last)
        place, mirrored = (views // 2, views % 2 == 1) if self.scheme.flip else (views, views < 0)
        dy, dx = place // windows.shape[1], place % windows.shape[1]
        size, channels = self.scheme.size, len(self.mean)
        lines = (size, size * channels) if channels_last else (channels, size * size)
        if self.by_numpy and indices.device.type == "cpu":
            gathered = windows.numpy()[indices.numpy(), dy.numpy(), dx.numpy()]
            if self.scheme.flip:
                line = gathered.reshape(len(gathered), *lines) if channels_last else gathered
                backwards = np.arange(line.shape[-1]).reshape(size, -1)[::-1].ravel()
                line[mirrored.numpy()] = line[mirrored.numpy()].take(backwards, axis=-1)
            images = torch.from_numpy(gathered)
        else:
            images = windows[indices, dy, dx]
            flipped = images.flip(2 if channels_last else 3)
            images = torch.where(mirrored[:, None, None, None], flipped, images)
        images = images.float().contiguous()
        images.view(len(images), *lines).mul_(scale).add_(shift)
        return images.permute(0, 3, 1, 2) if channels_last else images
