"""Odd pictures: every kind is read as it is shown; what is damaged or no picture is refused."""

import io
from contextlib import suppress

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from tests.data.samples import encode, noise, written

from nst.data.images import decode, is_image

KINDS = {
    "PNG": "RGB L P RGBA 1", "JPEG": "RGB L CMYK", "WEBP": "RGB L P RGBA 1", "GIF": "RGB L P", "BMP": "RGB L P 1",
    "TIFF": "RGB L RGBA CMYK", "PPM": "RGB L",
}  # fmt: skip
PIXELS = noise(1, 24)[0][:16]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_rgb_or_grey_and_a_damaged_one_is_refused(kind: str) -> None:
    """Lossless pixels are kept, CMYK becomes the colour it shows; bytes at random give pixels or ValueError, nothing else."""
    for mode in KINDS[kind].split():
        colour, grey = (decode(encode(PIXELS, kind, mode), channels) for channels in (3, 1))
        assert (colour.shape, colour.dtype, grey.shape) == ((16, 24, 3), np.uint8, (16, 24, 1))
    if kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(decode(encode(PIXELS, kind), 3), PIXELS)
    if kind == "JPEG":
        red = np.full((16, 16, 3), (255, 0, 0), np.uint8)
        assert np.abs(decode(encode(red, kind, "CMYK"), 3).reshape(-1, 3).mean(0) - [255, 0, 0]).max() < 12
    data, draw = encode(noise(1)[0], kind), np.random.default_rng(0)
    for kept in (0.0, 0.01, 0.5):
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode(data[: int(len(data) * kept)], 3)
    for _ in range(10):
        changed = bytearray(data)
        for place in draw.integers(0, min(len(data), 200), 3):
            changed[place] = draw.integers(256)
        with suppress(ValueError):
            assert decode(bytes(changed), 3).ndim == 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_upright(kind: str) -> None:
    """Turned and mirrored as their EXIF tag says; a damaged tag is no error."""
    image, exif = Image.fromarray(PIXELS), Image.Exif()
    for orientation in range(1, 9):
        exif[ExifTags.Base.Orientation] = orientation
        data = written(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert decode(data, 3).shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
        assert np.array_equal(decode(data, 3), np.asarray(expected))
    if kind == "JPEG":
        assert decode(written(image, kind, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1"), 3).shape == (16, 24, 3)


def test_transparency_shows_the_background() -> None:
    """A black icon: where it is, black; elsewhere the background; halfway, half of both."""
    icon, background = np.zeros((2, 3, 4), np.uint8), (10, 20, 30)
    icon[:, 0, 3], icon[:, 1, 3] = 255, 128
    for mode in ("RGBA", "LA"):
        row = decode(written(Image.fromarray(icon).convert(mode)), 3, background)[0]
        assert np.abs(row.astype(int) - [(0, 0, 0), (5, 10, 15), background]).max() <= 1
    clear = encode(PIXELS, "PNG", "P", transparency=bytes(256))
    assert (decode(clear, 3, background) == background).all()


def test_of_sixteen_bits_the_upper_eight_are_taken() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 1), dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        data = written(Image.fromarray(values[..., 0]), kind)
        assert all(np.array_equal(decode(data, n), np.repeat(values >> 8, n, axis=2)) for n in (1, 3))


def test_what_is_no_image_is_refused_and_dot_files_are_none() -> None:
    """Nor are numbers that are no 16 bits."""
    values = (np.full((4, 4), 1e6, np.int32), np.full((4, 4), 0.5, np.float32))
    for data in (b"hello, world!", *(written(Image.fromarray(value), "TIFF") for value in values)):
        with pytest.raises(ValueError, match=r"is no JPEG, PNG, .*; 13 bytes|convert it to 8"):
            decode(data, 3)
    assert [name for name in ("a.JPG", "b.tif", "._a.jpg", ".png", "a.txt") if is_image(name)] == ["a.JPG", "b.tif"]
