"""Encoded image → uint8 pixels. Pillow decodes: torchvision's own decoders are on their way out (deprecated since 0.29)."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
"""File names that count as images."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # naming them halves the time of a small image
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # 8 bits a channel


def decode(data: bytes, channels: int) -> np.ndarray:
    """JPEG, PNG, WebP, GIF or BMP bytes → [H, W, channels] uint8; grayscale, CMYK and palette images are converted.

    Raises:
        ValueError: the bytes are no image, truncated, damaged as far as the format can tell, or have 16-bit channels. The
            message says why, not which file.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ValueError …
        reason = "no JPEG, PNG, WebP, GIF or BMP" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"cannot be decoded ({reason}; {len(data)} bytes)") from None
    if image.mode not in _MODES:
        raise ValueError(f"has pixels of mode {image.mode!r}; convert it to 8 bits a channel")
    if image.mode in ("P", "PA"):  # a palette with transparency goes by RGBA
        image = image.convert("RGBA")
    mode = "RGB" if channels == 3 else "L"
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(image.height, image.width, channels)


def decode_all(encoded: Sequence[bytes], channels: int, size: int, where: Callable[[int], str]) -> Tensor:
    """Images of one size: [n, channels, size, size] uint8. About 60 µs a CIFAR image; threads do not help at this size.

    Raises:
        ValueError: an image is broken or of another size; `where(i)` names image i's file and row.
    """
    images = np.empty((len(encoded), size, size, channels), np.uint8)
    for i, data in enumerate(encoded):
        try:
            image = decode(data, channels)
        except ValueError as error:
            raise ValueError(f"{where(i)}: the image {error}") from None
        if image.shape != images.shape[1:]:
            found = f"{image.shape[1]}×{image.shape[0]}"
            raise ValueError(f"{where(i)}: the image is {found} pixels, data.size={size} needs {size}×{size}")
        images[i] = image
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
