"""Mixup and cutmix: each image by hand; the same on any number of ranks and after a restart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.samples import joined, load, same, write_tree
from tests.data.test_memory import make_split
from torch import Tensor

from nst.data.batch import MixingLoader, epoch_mixture, mixed

KINDS = [(1.0, 0.0), (0.0, 1.0), (0.4, 1.0)]


def loader(mixup: float, cutmix: float, split: Any = None, batch: int = 16, **ranks: Any) -> MixingLoader:
    return MixingLoader(split or make_split(37), batch, True, 3, num_classes=10, mixup=mixup, cutmix=cutmix, **ranks)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("mixup", "cutmix"), KINDS)
def test_each_image_is_the_mixture_it_should_be(mixup: float, cutmix: float, channels_last: bool) -> None:
    mixing = loader(mixup, cutmix, batch=9, channels_last=channels_last)
    mixture = epoch_mixture(37, 3, 2, mixup, cutmix)
    plain = make_split(37).loader(9, train=True, seed=3, channels_last=channels_last).epoch(2)
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


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_and_restarts_change_nothing(on_disk: bool, world: int, tmp_path: Path) -> None:
    """Parts of 5 and 6 images: partners lie in other parts, too."""
    split = make_split(37)
    if on_disk:
        write_tree(tmp_path)
        split = load(tmp_path).train
    whole = list(loader(0.4, 1.0, split).epoch(1))
    ranks = [loader(0.4, 1.0, split, rank=rank, world=world).epoch(1) for rank in range(world)]
    assert same(joined(ranks), whole)
    assert same(list(loader(0.4, 1.0, split).epoch(1, first_step=1)), whole[1:])


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
