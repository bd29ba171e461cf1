"""Preprocessing of image files for a trained student, the same as in the evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nst.data.decode import decode, scale_and_shift

if TYPE_CHECKING:  # torchvision, which only a call needs
    from nst.data.augment import Interpolation


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of the evaluation."""

    channels: int
    size: int  # of the centre crop, which the network sees
    resize: int | None  # of the shorter side before it; None: the data's images had their size
    interpolation: "Interpolation"
    antialias: bool
    mean: tuple[float, ...]  # by channel, on the scale 0 … 1
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"images of {self.channels} channels; image files have 1 or 3")

    def __call__(self, encoded: bytes) -> Tensor:
        """JPEG, PNG, WebP, GIF or BMP of any size → `[channels, size, size]` float32. Raises ValueError for what is no image."""
        from nst.data.augment import UNAUGMENTED, Augmentation

        side = self.size if self.resize is None else self.resize
        crop = Augmentation(
            self.size, side, (1.0, 1.0), (1.0, 1.0), 0.0, 0.0, False, self.interpolation, self.antialias
        )
        scale, shift = (value[:, None, None] for value in scale_and_shift(self.mean, self.std))
        return crop(decode(encoded, self.channels), 0, UNAUGMENTED).to(torch.float32).mul_(scale).add_(shift)

    def __str__(self) -> str:
        mean, std = (f"[{', '.join(f'{v:g}' for v in values)}]" for values in (self.mean, self.std))
        smooth = "with" if self.antialias else "without"
        before = f"images of {self.size} × {self.size} pixels"
        if self.resize is not None:
            before = (
                f"the shorter side resized to {self.resize} pixels ({self.interpolation}, {smooth} antialiasing), then the "
                f"centre crop of {self.size} × {self.size}"
            )
        return f"{before}; by channel `(pixel / 255 - mean) / std` with mean {mean} and std {std}"


def preprocessing(node: Mapping[str, Any]) -> Preprocessing:
    """Of a run's `data`, or of `input` in a `model.json`."""
    channels = node["channels"] if "channels" in node else node["shape"][1]
    size = node["size"] if "size" in node else node["shape"][2]
    how = node.get("interpolation", "bilinear"), node.get("antialias", True)
    return Preprocessing(channels, size, node.get("resize"), *how, tuple(node["mean"]), tuple(node["std"]))
