"""Data sets that fit in memory: one uint8 tensor on the device; crop, flip and normalisation run on whole batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from nst.data.batch import Split, Stream, check, scale_and_shift

_SUBSET_SEED = 0x5EED  # the views in a cache do not depend on the seed of a run


@dataclass(frozen=True)
class ViewScheme:
    """Crops of `size` from an image padded by `pad` on each side, mirrored or not.

    The border is zero ("constant") or the image mirrored at its edge without repeating it ("reflect").

    view = (dy · (2·pad + 1) + dx) · (2 if flip else 1) + mirrored, with dy and dx the crop's corner in the padded image.
    """

    size: int
    pad: int
    flip: bool
    padding_mode: str = "constant"

    def __post_init__(self) -> None:
        check("pad", self.pad, "from 0 (no crops) to 63 pixels", lambda v: type(v) is int and 0 <= v <= 63)
        check("flip", self.flip, "true or false", lambda v: isinstance(v, bool))
        right = "constant (zeros) or reflect (which needs a pad below data.size)"
        allowed = ("constant", "reflect") if self.pad < self.size else ("constant",)
        check("padding_mode", self.padding_mode, right, lambda v: v in allowed)

    @property
    def offsets(self) -> int:
        """Positions of the crop along one axis."""
        return 2 * self.pad + 1

    @property
    def num_views(self) -> int:
        return self.offsets**2 * (2 if self.flip else 1)

    @property
    def unaugmented(self) -> int:
        """The view that is the image itself."""
        return (self.pad * self.offsets + self.pad) * (2 if self.flip else 1)

    @property
    def key(self) -> str:
        """The identity of the scheme in a manifest: equal keys number the same views."""
        border = "reflect" if self.padding_mode == "reflect" else ""
        return f"size{self.size}-{border}pad{self.pad}-{'flip' if self.flip else 'noflip'}"

    def padded(self, images: Tensor) -> Tensor:
        """Images [n, C, size, size] with their border: [n, C, size + 2·pad, size + 2·pad]."""
        if self.padding_mode == "constant":
            return nn.functional.pad(images, (self.pad,) * 4)
        last = self.size - 1
        place = torch.arange(-self.pad, self.size + self.pad, device=images.device).abs()
        place = last - (last - place).abs()  # torch's own reflect padding takes no uint8
        return images.index_select(2, place).index_select(3, place)

    def decode(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View numbers [B] → dy [B], dx [B] (int64, 0 … 2·pad), mirrored [B] (bool)."""
        sides = 2 if self.flip else 1
        place = views // sides
        return place // self.offsets, place % self.offsets, views % sides == 1


class MemorySplit(Split):
    """Images of one size, in memory.

    Args:
        images: [n, C, size, size] uint8.
        labels: [n] int64.
        scheme: the views of an image.
        mean, std: of the C channels, on the scale 0 … 1.

    Raises:
        ValueError: images or labels of another type or shape.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, scheme: ViewScheme, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        size, channels, n = scheme.size, len(mean), len(images)
        found = (images.dtype, tuple(images.shape), labels.dtype, tuple(labels.shape))
        if found != (torch.uint8, (n, channels, size, size), torch.int64, (n,)):
            raise ValueError(
                f"images are {found[0]} of shape {found[1]}, labels {found[2]} of shape {found[3]}; pixels 0 … 255 in torch.uint8 "
                f"of shape {(n, channels, size, size)} and labels in torch.int64 of shape {(n,)} are needed"
            )
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
        """[n, k] int16: k distinct views of each image, ascending.

        They do not depend on a seed, those for k are among those for k + 1, and k = num_views gives 0 … num_views − 1.

        Raises:
            ValueError: k is not in 1 … num_views.
        """
        n, num_views = len(self), self.scheme.num_views
        if not 1 <= k <= num_views:
            raise ValueError(f"views per image: {k}; this data set has 1 to {num_views}")
        rows = np.tile(np.arange(num_views, dtype=np.int16), (n, 1))
        np.random.default_rng(_SUBSET_SEED).permuted(rows, axis=1, out=rows)
        return torch.from_numpy(np.sort(rows[:, :k], axis=1))

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

    On the CPU numpy gathers: nearly twice as fast as torch, in one thread.
    """

    def __init__(self, split: MemorySplit, device: torch.device, channels_last: bool) -> None:
        self.scheme, self.channels_last, self.on_cpu = split.scheme, channels_last, device.type == "cpu"
        size, channels = split.scheme.size, len(split.mean)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        padded = split.scheme.padded(split.images.to(device)).contiguous(memory_format=layout)
        windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # [n, C, dy, dx, size, size], a view: no copy
        inner = (4, 5, 1) if channels_last else (1, 4, 5)
        self.windows = windows.permute(0, 2, 3, *inner)  # [n, dy, dx, …]: an image as it will lie in memory
        # an image as lines along which the normalisation repeats: H lines of W·C values, or C lines of H·W
        self.lines = (size, size * channels) if channels_last else (channels, size * size)
        repeats, shape = (size, (-1,)) if channels_last else (1, (-1, 1))
        affine = (v.repeat(repeats).reshape(shape).to(device) for v in scale_and_shift(split.mean, split.std))
        self.scale, self.shift = affine
        columns = torch.arange(size * channels if channels_last else size)
        self.mirror = columns.reshape(size, -1).flip(0).flatten().numpy()  # takes a line of pixels backwards

    def __call__(self, indices: Tensor, views: Tensor) -> Tensor:
        """indices, views: [B] int64 → [B, C, size, size] float32, contiguous in the memory format chosen."""
        place = (indices, *self.scheme.decode(views))
        images = (self._by_numpy(*place) if self.on_cpu else self._by_torch(*place)).float().contiguous()
        images.view(len(images), *self.lines).mul_(self.scale).add_(self.shift)
        return images.permute(0, 3, 1, 2) if self.channels_last else images

    def _by_torch(self, indices: Tensor, dy: Tensor, dx: Tensor, mirrored: Tensor) -> Tensor:
        crops = self.windows[indices, dy, dx]
        columns = 2 if self.channels_last else 3
        return torch.where(mirrored[:, None, None, None], crops.flip(columns), crops) if self.scheme.flip else crops

    def _by_numpy(self, indices: Tensor, dy: Tensor, dx: Tensor, mirrored: Tensor) -> Tensor:
        crops = self.windows.numpy()[indices.numpy(), dy.numpy(), dx.numpy()]
        if self.scheme.flip:
            some, pixels = mirrored.numpy(), crops.reshape(len(crops), *self.lines) if self.channels_last else crops
            pixels[some] = pixels[some].take(self.mirror, axis=-1)
        return torch.from_numpy(crops)
