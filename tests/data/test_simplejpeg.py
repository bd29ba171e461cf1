"""With the extra `jpeg`, every JPEG gives the pixels or the error that Pillow gives."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from tests.data.samples import encode, noise

from nst.data import decode as module
from nst.data.decode import decode

simplejpeg = pytest.importorskip("simplejpeg", reason='needs the extra "jpeg"')
pytestmark = pytest.mark.skipif(not features.check("libjpeg_turbo"), reason="Pillow has another JPEG library")


def by_pillow(data: bytes, monkeypatch: pytest.MonkeyPatch, *more: int) -> np.ndarray:
    with monkeypatch.context() as patch:
        patch.setattr(module, "SIMPLEJPEG", False)
        return decode(data, 3, *more)


def photo(height: int, width: int) -> np.ndarray:
    """Smooth shapes under some noise: both occur in photographs."""
    small = Image.fromarray(noise(1, 8)[0]).resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(1).normal(0, 8, (height, width, 3))
    return np.clip(np.asarray(small) + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (45, 67), (7, 3), (1, 1)])
def test_every_subsampling_gives_pillows_pixels(
    subsampling: str, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = simplejpeg.encode_jpeg(photo(height, width), quality=85, colorsubsampling=subsampling)
    assert module._jpeg(data, 10_000) is not None
    assert np.array_equal(decode(data, 3), by_pillow(data, monkeypatch))


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 30},
        {"quality": 100},
        {"progressive": True},
        {"optimize": True},
        {"keep_rgb": True},
        {"restart_marker_blocks": 1},
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},  # turned by 90°
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_way_of_writing_gives_pillows_pixels(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.fromarray(photo(45, 67)).save(file, "JPEG", **options)
    assert module._jpeg(file.getvalue(), 10_000) is not None
    assert np.array_equal(decode(file.getvalue(), 3), by_pillow(file.getvalue(), monkeypatch))


def test_pillow_converts_cmyk(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(45, 67), "JPEG", "CMYK")
    assert module._jpeg(data, 10_000) is None
    assert np.array_equal(decode(data, 3), by_pillow(data, monkeypatch))


@pytest.mark.parametrize("kept", [2, 20, 300, -100, -1])
def test_damage_is_reported_in_pillows_words(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(45, 67), "JPEG")[:kept]
    with pytest.raises(ValueError, match="cannot be decoded") as expected:
        by_pillow(data, monkeypatch)
    with pytest.raises(ValueError, match="cannot be decoded") as found:
        decode(data, 3)
    assert str(found.value) == str(expected.value)


def test_an_image_above_the_limit_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    with pytest.raises(ValueError, match=r"more than data\.max_pixels=3000"):
        decode(encode(photo(45, 67), "JPEG"), 3, 3000)
