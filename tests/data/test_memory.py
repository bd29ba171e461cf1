import hashlib

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from nst.data.dataset import memory_splits
from nst.data.memory import MemorySplit
from nst.data.views import ViewScheme

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
    dy, dx = divmod(place, 2 * margin + 1)
    padded = transforms.pad(split.images[index].float(), [margin] * 4, padding_mode=split.scheme.padding_mode)
    image = transforms.crop(padded.to(torch.uint8), dy, dx, size, size)
    image = transforms.horizontal_flip(image) if mirrored else image
    return transforms.normalize(image.double() / 255, list(split.mean), list(split.std))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("padding_mode", ["constant", "reflect"])
@pytest.mark.parametrize(("size", "pad", "flip", "channels"), [(8, 2, True, 3), (5, 1, False, 1), (6, 0, True, 3)])
def test_rendering_equals_one_image_at_a_time(
    size: int, pad: int, flip: bool, channels: int, padding_mode: str, channels_last: bool
) -> None:
    split = make_split(12, size, pad, flip, channels, padding_mode)
    indices = torch.arange(12).repeat_interleave(split.num_views)
    views = torch.arange(split.num_views).repeat(12)
    images = split.render(indices, views, channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=memory_format)
    expected = torch.stack([reference(split, int(i), int(v)) for i, v in zip(indices, views, strict=True)])
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-6)
    # what runs on a GPU is another program for the same result
    other = split.renderer("cpu", channels_last)._by_torch(indices, views)
    assert torch.equal(other.permute(0, 3, 1, 2) if channels_last else other, images)
    # the pixels themselves are exact
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (split.mean, split.std))
    pixels = [((x.double() * std + mean) * 255).round().to(torch.uint8) for x in (images, expected)]
    assert torch.equal(*pixels)


def test_the_identity_view_is_the_image() -> None:
    split = make_split()
    plain = MemorySplit(split.images, split.labels, ViewScheme(8, 0, False), split.mean, split.std)
    indices = torch.arange(len(split))
    images = split.render(indices, torch.full_like(indices, split.unaugmented))
    assert torch.equal(images, plain.render(indices, torch.zeros_like(indices)))


def test_a_batch_is_what_its_indices_and_views_say() -> None:
    split = make_split()
    for batch in split.loader(16, train=True, seed=3).epoch(4):
        assert torch.equal(batch.images, split.render(batch.indices, batch.views))
        assert torch.equal(batch.labels, split.labels[batch.indices])
        assert batch.indices.dtype == batch.views.dtype == batch.labels.dtype == torch.int64


def test_two_ranks_see_what_one_process_sees() -> None:
    split = make_split(37)
    ranks = [split.loader(16, train=True, seed=3, rank=rank, world=2) for rank in range(2)]
    for whole, *parts in zip(split.loader(16, train=True, seed=3).epoch(1), *(r.epoch(1) for r in ranks), strict=True):
        for field in range(4):
            assert torch.equal(whole[field], torch.cat([part[field] for part in parts]))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_rank_without_images_gets_an_empty_batch(channels_last: bool) -> None:
    (batch,) = make_split(1).loader(4, train=True, rank=0, world=2, channels_last=channels_last).epoch(0)
    assert batch.images.shape == (0, 3, 8, 8)
    assert len(batch.labels) == len(batch.indices) == len(batch.views) == 0


def test_a_restart_inside_an_epoch_gives_the_same_batches() -> None:
    loader = make_split(37).loader(8, train=True, seed=3)
    rest = list(make_split(37).loader(8, train=True, seed=3).epoch(2, first_step=3))
    assert len(rest) == loader.steps - 3
    for batch, again in zip(list(loader.epoch(2))[3:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))


def test_a_sweep_shows_every_image_in_the_view_asked_for() -> None:
    split = make_split(11)
    views = split.view_subset(3)[:, 1]
    loaders = [split.loader(4, train=True, rank=rank, world=2) for rank in range(2)]
    parts = [list(loader.batches(torch.arange(11), views.long(), loader.schedule.parts())) for loader in loaders]
    batches = [batch for step in zip(*parts, strict=True) for batch in step]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(11))
    assert torch.cat([batch.views for batch in batches]).tolist() == views.tolist()
    whole = split.loader(4, train=True)
    assert len(list(whole.batches(torch.arange(11), views.long(), whole.schedule.parts(first_step=2)))) == 1


def test_the_data_path_leaves_the_global_generators_alone() -> None:
    state = torch.get_rng_state()
    list(make_split().loader(16, train=True, seed=3).epoch(0))
    assert torch.equal(state, torch.get_rng_state())


def test_the_fingerprint_tells_pixels_and_labels_apart() -> None:
    split, same, pixel, label = (make_split() for _ in range(4))
    pixel.images[3, 1, 2, 2] ^= 1
    label.labels[7] = (label.labels[7] + 1) % 10
    assert split.fingerprint == same.fingerprint
    assert len({split.fingerprint, pixel.fingerprint, label.fingerprint}) == 3


def test_the_fingerprint_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split()
    first = split.fingerprint
    monkeypatch.setattr(hashlib, "sha256", None)
    assert split.fingerprint == first


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_renders_what_the_cpu_renders() -> None:
    split = make_split(100, 32, 4)
    for channels_last in (False, True):
        batches = (
            split.loader(32, train=True, device=d, channels_last=channels_last).epoch(0) for d in ("cpu", "cuda")
        )
        for cpu, gpu in zip(*batches, strict=True):
            assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu[1:], gpu[1:], strict=True))
            torch.testing.assert_close(cpu.images, gpu.images.cpu(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(8, 1, 8, 8), torch.arange(8), "training images are torch.float32"),  # pixels of 0 … 1
        (torch.zeros(8, 1, 12, 12, dtype=torch.uint8), torch.arange(8), r"of shape \(8, 1, 12, 12\)"),  # only a corner
        (
            torch.zeros(8, 1, 8, 8, dtype=torch.uint8),
            torch.arange(5),
            r"training labels are torch.int64 of shape \(5,\)",
        ),
    ],
)
def test_tensors_that_would_be_misread_are_refused(images: Tensor, labels: Tensor, message: str) -> None:
    pixels, scheme = torch.zeros(8, 1, 8, 8, dtype=torch.uint8), ViewScheme(8, 0, flip=True)
    with pytest.raises(ValueError, match=message):
        memory_splits(
            images,
            labels,
            pixels,
            torch.arange(8),
            num_classes=8,
            scheme=scheme,
            mean=(0.5,),
            std=(0.25,),
            validation=0.0,
            limit=None,
        )
