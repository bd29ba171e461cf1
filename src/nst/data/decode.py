"""Encoded image → uint8 pixels. Uses Pillow, because torchvision's decoders are deprecated (since 0.29).

If simplejpeg is installed, it decodes JPEGs, faster and to the same pixels: both use libjpeg-turbo.
"""

import io
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

SIMPLEJPEG = find_spec("simplejpeg") is not None and (features.version("libjpeg_turbo") or "").startswith("3.")
"""simplejpeg decodes JPEGs: the extra `jpeg` is installed, and Pillow has the same library of the same major version, with which
the pixels were found to be the same."""

_simplejpeg: Any = import_module("simplejpeg") if SIMPLEJPEG else None

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
"""File names that count as images."""

MAX_PIXELS = 100_000_000
"""Default of `data.max_pixels`: above nearly any camera's photograph, 300 MB as RGB."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # naming them halves the time of a small image
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # 8 bits a channel


def decode(data: bytes, channels: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """JPEG, PNG, WebP, GIF or BMP bytes → [H, W, channels] uint8; grayscale, CMYK and palette images are converted.

    Raises:
        ValueError: the bytes are no image, truncated, damaged as far as the format can tell, have 16-bit channels or, by
            their header, more than `max_pixels` pixels. The message says why, not which file.
    """
    if channels == 3 and SIMPLEJPEG and (pixels := _jpeg(data, max_pixels)) is not None:
        return pixels
    image = _open(data)
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"has {image.width}×{image.height} pixels by its header, more than data.max_pixels={max_pixels} "
            f"({len(data)} bytes); raise that if the image is meant to be so large"
        )
    return _pixels(image, data, channels)


def decode_all(encoded: Sequence[bytes], channels: int, size: int, where: Callable[[int], str]) -> Tensor:
    """Images of one size: [n, channels, size, size] uint8. About 60 µs a CIFAR image; threads do not help at this size.

    Raises:
        ValueError: an image is broken or, by its header, of another size; `where(i)` names image i's file and row.
    """
    images = []
    for i, data in enumerate(encoded):
        try:
            image = _open(data)
            if image.size != (size, size):
                found = f"{image.width}×{image.height}"
                raise ValueError(f"is {found} pixels, data.size={size} needs {size}×{size}")
            images.append(_pixels(image, data, channels))
        except ValueError as error:
            raise ValueError(f"{where(i)}: the image {error}") from None
    pixels = np.stack(images) if images else np.empty((0, size, size, channels), np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """A JPEG's pixels by simplejpeg; None where Pillow is to decode it, or to say what is wrong with it."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, space, _ = _simplejpeg.decode_jpeg_header(data)
        if height * width > max_pixels or space not in ("YCbCr", "RGB", "Gray"):  # CMYK: Pillow converts otherwise
            return None
        return _simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # damaged, or a kind that the TurboJPEG interface does not know
        return None


def _open(data: bytes) -> Image.Image:
    """The image's header; nothing is decoded yet. Its size is for the caller to check, so Pillow's own limit is lifted."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, ValueError …
        raise _cannot_be_decoded(error, data) from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _pixels(image: Image.Image, data: bytes, channels: int) -> np.ndarray:
    if image.mode not in _MODES:
        raise ValueError(f"has pixels of mode {image.mode!r}; convert it to 8 bits a channel")
    try:
        image.load()
        if image.mode in ("P", "PA"):  # a palette with transparency goes by RGBA
            image = image.convert("RGBA")
        mode = "RGB" if channels == 3 else "L"
        pixels = np.array(image if image.mode == mode else image.convert(mode))
    except Exception as error:
        raise _cannot_be_decoded(error, data) from None
    return pixels.reshape(image.height, image.width, channels)


def _cannot_be_decoded(error: Exception, data: bytes) -> ValueError:
    reason = "no JPEG, PNG, WebP, GIF or BMP" if isinstance(error, Image.UnidentifiedImageError) else error
    return ValueError(f"cannot be decoded ({reason or type(error).__name__}; {len(data)} bytes)")


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(a, b), each [C] float32, with a · pixel + b = (pixel / 255 − mean) / std for uint8 pixels."""
    mean64, std64 = torch.tensor(list(mean), dtype=torch.float64), torch.tensor(list(std), dtype=torch.float64)
    return (1 / (255 * std64)).float(), (-mean64 / std64).float()
