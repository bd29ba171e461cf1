"""Images in memory: rendering in batches is what torchvision does one by one; views are numbered without gaps."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from nst.data.memory import MemorySplit, ViewScheme

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def make_split(
    n: int = 40, size: int = 8, pad: int = 2, flip: bool = True, channels: int = 3, padding_mode: str = "constant"
) -> MemorySplit:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n,), generator=generator)
    return MemorySplit(images, labels, ViewScheme(size, pad, flip, padding_mode), MEAN[:channels], STD[:channels])


def reference(split: MemorySplit, index: int, view: int) -> Tensor:
    """One image by torchvision: pad, crop, mirror; then (x / 255 − mean) / std in float64."""
    size, margin, sides = split.scheme.size, split.scheme.pad, 2 if split.scheme.flip else 1
    place, mirrored = divmod(view, sides)
    padded = transforms.pad(split.images[index].float(), [margin] * 4, padding_mode=split.scheme.padding_mode)
    image = transforms.crop(padded.to(torch.uint8), *divmod(place, 2 * margin + 1), size, size)
    image = transforms.horizontal_flip(image) if mirrored else image
    return transforms.normalize(image.double() / 255, list(split.mean), list(split.std))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "kind", [(8, 4, True, 3, "reflect"), (8, 4, True, 3, "constant"), (5, 1, False, 1), (6, 0, True, 3)]
)
def test_rendering_equals_one_image_at_a_time(
    kind: tuple[Any, ...], channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, count = make_split(12, *kind), (2 * kind[1] + 1) ** 2 * (1 + kind[2])
    assert split.num_views == count
    indices, views = torch.arange(12).repeat_interleave(count), torch.arange(count).repeat(12)
    images = split.render(indices, views, channels_last)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    expected = torch.stack([reference(split, int(i), int(v)) for i, v in zip(indices, views, strict=True)])
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-6)
    # what runs on a GPU is another program for the same result
    monkeypatch.setattr(split, "by_numpy", False)
    assert torch.equal(split.render(indices, views, channels_last), images)
    plain = transforms.normalize(split.images.double() / 255, list(split.mean), list(split.std))
    unaugmented = split.render(torch.arange(12), torch.full((12,), split.unaugmented), channels_last)
    torch.testing.assert_close(unaugmented.double(), plain, rtol=0, atol=1e-6)


def test_a_subset_has_distinct_views_and_grows() -> None:
    split = make_split(200, pad=1)
    for few, many in zip(split.view_subset(4).tolist(), split.view_subset(9).tolist(), strict=True):
        assert len(set(few)) == 4
        assert set(few) <= set(many)
    assert torch.equal(make_split(5, pad=1).view_subset(18), torch.arange(18).expand(5, 18))
    for k in (0, 19):
        with pytest.raises(ValueError, match=f"{k}; .* 18"):
            split.view_subset(k)


def test_the_fingerprint_tells_pixels_and_labels_apart() -> None:
    first, same, pixel, label = (make_split() for _ in range(4))
    pixel.images[3, 1, 2, 2] ^= 1
    label.labels[7] = (label.labels[7] + 1) % 10
    assert first.fingerprint == same.fingerprint not in (pixel.fingerprint, label.fingerprint)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_renders_what_the_cpu_renders() -> None:
    for layout in (False, True):
        loaders = [
            make_split(100, 32, 4).loader(32, train=True, device=d, channels_last=layout) for d in ("cpu", "cuda")
        ]
        for cpu, gpu in zip(*(loader.epoch(0) for loader in loaders), strict=True):
            assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu[1:], gpu[1:], strict=True))
            torch.testing.assert_close(cpu.images, gpu.images.cpu(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("images", [torch.rand(8, 1, 8, 8), torch.zeros(8, 1, 12, 12, dtype=torch.uint8)])
def test_tensors_that_would_be_misread_are_refused(images: Tensor) -> None:
    """Pixels of 0 … 1; and larger ones, of which a corner would be seen."""
    with pytest.raises(ValueError, match=r"\(torch.uint8, \(8, 1, 8, 8\)"):
        MemorySplit(images, torch.arange(8), ViewScheme(8, 0, flip=True), (0.5,), (0.25,))
