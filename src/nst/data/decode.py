"""Encoded image → uint8 pixels, by Pillow: one rule for training, evaluation and `nst predict`."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""File names that count as images."""

WHITE = (255, 255, 255)

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # naming them halves the time of a small image
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # 8 bits a channel
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image. Names that begin with a dot are not: `._1.jpg` is a Mac's shadow of `1.jpg`."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def decode(data: bytes, channels: int, background: Sequence[int] = WHITE) -> np.ndarray:
    """JPEG, PNG, WebP, GIF, BMP, TIFF or PPM bytes → [H, W, channels] uint8, upright.

    Of an animation the first picture; CMYK, palettes and grey become RGB (`channels` 3), colours become grey (1). Where an
    image is transparent, `background` (R, G, B) shines through. Of 16 bits a channel the upper 8 are taken.

    Raises:
        ValueError: the bytes are no image, truncated, damaged as far as the format can tell, or hold floats or numbers of
            more than 16 bits. The message says why, not which file.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
        if image.mode.startswith("I"):
            image = _upper_byte(image)
        elif image.mode not in _MODES:
            raise ValueError(f"has pixels of mode {image.mode!r}; convert it to 8 bits a channel")
        if (turn := _UPRIGHT.get(_orientation(image))) is not None:
            image = image.transpose(turn)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
        mode = "RGB" if channels == 3 else "L"
        pixels = np.array(image if image.mode == mode else image.convert(mode))
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, ValueError …
        reason = f"is no {', '.join(_FORMATS)}" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"cannot be decoded ({reason or type(error).__name__}; {len(data)} bytes)") from None
    return pixels.reshape(image.height, image.width, channels)


def _upper_byte(image: Image.Image) -> Image.Image:
    """Grey of 16 bits → 8 bits, as Pillow itself reduces colours of 16 bits."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"holds numbers from {values.min()} to {values.max()}; convert it to 8 or 16 bits a channel")
    reduced = Image.fromarray((values >> 8).astype(np.uint8))
    reduced.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return reduced


def _orientation(image: Image.Image) -> int:
    """1 … 8; 1, upright, where EXIF is missing or damaged: a viewer shows such an image, too."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(a, b), each [C] float32, with a · pixel + b = (pixel / 255 − mean) / std for uint8 pixels."""
    mean64, std64 = torch.tensor(list(mean), dtype=torch.float64), torch.tensor(list(std), dtype=torch.float64)
    return (1 / (255 * std64)).float(), (-mean64 / std64).float()
