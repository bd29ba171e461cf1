import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from tests.data.samples import encode, noise

from nst.data.images import decode, is_image

KINDS = {
    "PNG": ["RGB", "L", "P", "RGBA", "1"],
    "JPEG": ["RGB", "L", "CMYK"],
    "WEBP": ["RGB", "L", "P", "RGBA", "1"],
    "GIF": ["RGB", "L", "P"],
    "BMP": ["RGB", "L", "P", "1"],
    "TIFF": ["RGB", "L", "RGBA", "CMYK"],
    "PPM": ["RGB", "L"],
}


def written(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in KINDS.items() for mode in modes])
def test_every_kind_becomes_rgb_or_grey(kind: str, mode: str) -> None:
    data = encode(noise(1, 24)[0][:16], kind, mode)
    assert decode(data, 3).shape == (16, 24, 3)
    assert decode(data, 3).dtype == np.uint8
    assert decode(data, 1).shape == (16, 24, 1)


def test_lossless_pixels_are_kept_and_cmyk_becomes_the_colour_it_shows() -> None:
    pixels, red = noise(1)[0], np.zeros((16, 16, 3), np.uint8)
    assert np.array_equal(decode(encode(pixels), 3), pixels)
    red[..., 0] = 255
    shown = decode(encode(red, "JPEG", "CMYK"), 3).reshape(-1, 3).mean(0)
    assert np.abs(shown - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(kind: str, orientation: int) -> None:
    image, exif = Image.fromarray(noise(1, 24)[0][:16]), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    lossless: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = written(image, kind, exif=exif, **lossless)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert decode(data, 3).shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
    assert np.array_equal(decode(data, 3), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_is_no_error() -> None:
    data = written(Image.fromarray(noise(1)[0]), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1")
    assert decode(data, 3).shape == (32, 32, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
def test_transparency_shows_the_background(mode: str, background: tuple[int, int, int]) -> None:
    """A black icon: where it is, black; elsewhere the background; halfway, half of both."""
    icon = np.zeros((2, 3, 4), np.uint8)
    icon[:, 0, 3], icon[:, 1, 3] = 255, 0 if mode == "P" else 128
    image = Image.fromarray(icon)
    if mode == "P":
        palette = Image.new("P", (3, 2), 0)
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.putdata([1, 0, 0] * 2)
        data = written(palette, transparency=0)
    else:
        data = written(image.convert(mode))
    row = decode(data, 3, background)[0]
    half = background if mode == "P" else [round(c * 127 / 255) for c in background]
    assert np.abs(row.astype(int) - [(0, 0, 0), half, background]).max() <= 1


def png16(values: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits a channel, values [H, W, channels]; colour type 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_of_sixteen_bits_the_upper_eight_are_taken(colour: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, channels), dtype=np.uint16)
    if channels in (2, 4):
        values[..., -1] = 65535  # opaque
    upper = (values >> 8).astype(np.uint8)[..., : 3 if channels > 2 else 1]
    assert np.array_equal(decode(png16(values, colour), 3), np.broadcast_to(upper, (8, 8, 3)))
    if channels == 1:
        assert np.array_equal(decode(written(Image.fromarray(values[..., 0]), "TIFF"), 1), upper)


@pytest.mark.parametrize("values", [np.full((4, 4), 1e6, np.int32), np.full((4, 4), 0.5, np.float32)])
def test_numbers_that_are_no_16_bits_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="convert it to 8"):
        decode(written(Image.fromarray(values), "TIFF"), 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_damaged_image_is_refused(kind: str) -> None:
    """Cut short; and bytes at random give pixels or ValueError, nothing else."""
    data = encode(noise(1)[0], kind)
    for kept in (0.0, 0.01, 0.5):
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode(data[: int(len(data) * kept)], 3)
    draw = np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(data)
        for place in draw.integers(0, min(len(data), 200), 3):
            changed[place] = draw.integers(256)
        with suppress(ValueError):
            assert decode(bytes(changed), 3).ndim == 3


def test_what_is_no_image_is_refused_and_dot_files_are_none() -> None:
    with pytest.raises(ValueError, match=r"is no JPEG, PNG, .*; 13 bytes"):
        decode(b"hello, world!", 3)
    assert [is_image(name) for name in ("a.JPG", "b.tif", "._a.jpg", ".png", "a.txt")] == [
        True,
        True,
        False,
        False,
        False,
    ]
