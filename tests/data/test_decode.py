import io

import numpy as np
import pytest
from PIL import Image
from tests.data.samples import encode, noise

from nst.data.decode import decode

KINDS = {
    "PNG": ["RGB", "L", "P", "RGBA", "1"],
    "JPEG": ["RGB", "L", "CMYK"],
    "WEBP": ["RGB", "L", "P", "RGBA", "1"],
    "GIF": ["RGB", "L", "P"],
    "BMP": ["RGB", "L", "P", "1"],
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in KINDS.items() for mode in modes])
def test_every_kind_becomes_rgb(kind: str, mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(1, 24)[0][:16]).convert(mode).save(file, kind)
    pixels = decode(file.getvalue(), 3)
    assert pixels.shape == (16, 24, 3)
    assert pixels.dtype == np.uint8
    assert decode(file.getvalue(), 1).shape == (16, 24, 1)


def test_lossless_pixels_are_kept() -> None:
    pixels = noise(1)[0]
    assert np.array_equal(decode(encode(pixels), 3), pixels)


def test_cmyk_becomes_the_colour_it_shows() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    shown = decode(encode(red, "JPEG", "CMYK"), 3).reshape(-1, 3).mean(0)
    assert np.abs(shown - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.98])
def test_a_truncated_image_is_refused(kind: str, kept: float) -> None:
    data = encode(noise(1)[0], kind)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(data[: int(len(data) * kept)], 3)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="no JPEG, PNG, WebP, GIF or BMP; 13 bytes"):
        decode(b"hello, world!", 3)


def test_sixteen_bits_are_refused_not_clipped() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file, "PNG")
    with pytest.raises(ValueError, match="8 bits a channel"):
        decode(file.getvalue(), 3)
