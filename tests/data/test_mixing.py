"""Mixup and cutmix: each image by hand; the same on any number of ranks and after a restart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.samples import load, write_tree
from tests.data.test_memory import make_split
from torch import Tensor

from nst.data.batch import Batch, MixingLoader, epoch_mixture, mixed

KINDS = [(1.0, 0.0), (0.0, 1.0), (0.4, 1.0)]


def loader(mixup: float, cutmix: float, n: int = 37, batch: int = 16, **ranks: Any) -> MixingLoader:
    return MixingLoader(make_split(n), batch, True, 3, num_classes=10, mixup=mixup, cutmix=cutmix, **ranks)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("mixup", "cutmix"), KINDS)
def test_each_image_is_the_mixture_it_should_be(mixup: float, cutmix: float, channels_last: bool) -> None:
    mixing = loader(mixup, cutmix, batch=9, channels_last=channels_last)
    split, mixture = make_split(37), epoch_mixture(37, 3, 2, mixup, cutmix)
    plain = split.loader(9, train=True, seed=3, channels_last=channels_last).epoch(2)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for batch, one in zip(mixing.epoch(2), plain, strict=True):
        assert torch.equal(batch.indices, one.indices)
        assert batch.images.is_contiguous(memory_format=layout)
        for i, index in enumerate(one.indices.tolist()):
            other = i ^ 1 if i ^ 1 < len(one.indices) else i
            image, share = by_hand(one.images[i], one.images[other], *(values[index] for values in mixture))
            torch.testing.assert_close(batch.images[i], image)
            labels = torch.zeros(10)
            labels[one.labels[i]] += share
            labels[one.labels[other]] += 1 - share
            torch.testing.assert_close(batch.labels[i], labels)


def by_hand(image: Tensor, other: Tensor, weight: Tensor, boxed: Tensor, centre: Tensor) -> tuple[Tensor, float]:
    """One image [C, H, W], and how much of it stays."""
    share = float(weight)
    if not boxed:
        return share * image + (1 - share) * other, share
    result, side, taken = image.clone(), (1 - share) ** 0.5, 0
    rows, columns = (range(max(0, round(c * 8 - side * 4)), min(8, round(c * 8 + side * 4))) for c in centre.tolist())
    for y in rows:
        for x in columns:
            result[:, y, x] = other[:, y, x]
            taken += 1
    return result, 1 - taken / 64


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("mixup", "cutmix"), KINDS)
def test_ranks_and_restarts_change_nothing(mixup: float, cutmix: float, world: int) -> None:
    """Parts of 5 and 6 images: partners lie in other parts, too."""
    whole = list(loader(mixup, cutmix).epoch(1))
    ranks = [loader(mixup, cutmix, rank=rank, world=world).epoch(1) for rank in range(world)]
    joined = [
        Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True))) for batches in zip(*ranks, strict=True)
    ]
    later = list(loader(mixup, cutmix).epoch(1, first_step=2))
    for found, right in [*zip(joined, whole, strict=True), *zip(later, whole[2:], strict=True)]:
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_images_from_disk_are_mixed_alike(tmp_path: Path) -> None:
    write_tree(tmp_path)
    split = load(tmp_path).train

    def batches(**ranks: Any) -> list[Batch]:
        return list(MixingLoader(split, 7, True, 1, num_classes=3, mixup=1.0, cutmix=1.0, **ranks).epoch(0))

    whole, ranks = batches(), [batches(rank=rank, world=2) for rank in range(2)]
    for right, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(right.images, torch.cat([part.images for part in parts]))
        assert torch.equal(right.labels, torch.cat([part.labels for part in parts]))


def test_shares_follow_their_distribution_and_other_epochs_draw_others() -> None:
    share, boxed, _ = epoch_mixture(20000, 0, 0, 0.2, 0.0)
    assert not boxed.any()
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(share.var()) == pytest.approx(1 / (4 * 1.4), abs=0.005)  # of Beta(α, α): 1 / (4 (2α + 1))
    assert not torch.equal(share, epoch_mixture(20000, 0, 1, 0.2, 0.0)[0])
    share, boxed, centre = epoch_mixture(20000, 0, 0, 1.0, 1.0)
    assert float(boxed.float().mean()) == pytest.approx(0.5, abs=0.02)
    none = torch.zeros(20000, 1, 8, 8)
    kept = mixed(none, none, share, boxed, centre)[1]
    assert bool((kept[~boxed] == share[~boxed]).all())
    assert 0 <= float(kept.min()) <= float(kept.max()) <= 1
