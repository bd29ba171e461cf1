"""Which images, in which views and mixtures, a step has: functions of (seed, epoch, index), whatever the number of ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.data.samples import joined, same
from tests.data.test_memory import make_split
from torch import Tensor

from nst.data.batch import UNLISTED_VIEWS, Loader, MixingLoader, epoch_mixture


def loader(n: int, batch: int, train: bool = True, **settings: Any) -> Loader:
    return make_split(n).loader(batch, train=train, **({"seed": 5} | settings))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("n", "batch", "world"), [(97, 16, 8), (1, 4, 4)])
def test_ranks_together_see_each_image_once_as_one_process_would(n: int, batch: int, world: int, train: bool) -> None:
    """Also after a restart inside an epoch; the global generator is left alone."""
    state = torch.get_rng_state()
    one = list(loader(n, batch, train).epoch(2))
    ranks = [list(loader(n, batch, train, rank=rank, world=world).epoch(2)) for rank in range(world)]
    assert same(joined([iter(rank) for rank in ranks]), one)
    for parts in zip(*ranks, strict=True):
        sizes = [len(part.labels) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert all(part.images.shape[1:] == (3, 8, 8) for part in parts)
    indices = torch.cat([batch.indices for batch in one])
    assert indices.sort().values.equal(torch.arange(n))
    if not train:
        assert indices.tolist() == list(range(n))
        assert all(view == make_split(n).unaugmented for batch in one for view in batch.views.tolist())
    assert same(list(loader(n, batch, train).epoch(2, first_step=3)), one[3:])
    assert torch.equal(state, torch.get_rng_state())


def test_order_and_views_are_as_published_whatever_the_batch_size() -> None:
    """So that another program can say which view an image had; views that cannot be enumerated hardly ever repeat."""
    it = loader(50, 7, seed=3)
    order, views = it.plan(7)
    assert order.tolist() == np.random.default_rng([3, 7, 0]).permutation(50).tolist()
    assert views.tolist() == np.random.default_rng([3, 7, 1]).integers(0, 50, 50)[order].tolist()
    for seed, epoch in ((3, 8), (4, 7)):
        assert not torch.equal(order, loader(50, 7, seed=seed).plan(epoch)[0])
    assert all(torch.equal(a, b) for a, b in zip(loader(50, 32, seed=3).plan(7), (order, views), strict=True))
    it.split.num_views = None
    views = it.plan(0)[1]
    assert views.unique().numel() == 50
    assert 0 <= int(views.min()) < int(views.max()) < UNLISTED_VIEWS


def test_as_many_epochs_as_a_subset_has_views_show_each_once() -> None:
    """Wherever they begin; and in one epoch the images are at different ones of their views, with another seed at others."""
    subset = make_split(300).view_subset(5)
    for first in (0, 7):
        seen = [[] for _ in range(300)]
        for epoch in range(first, first + 5):
            order, views = loader(300, 16, views=subset).plan(epoch)
            slots = (views[:, None] == subset[order]).nonzero()[:, 1]
            assert torch.bincount(slots, minlength=5).min() > 30
            for index, view in zip(order.tolist(), views.tolist(), strict=True):
                seen[index].append(view)
        assert [sorted(views) for views in seen] == subset.tolist()
    one, other = (loader(300, 16, views=subset, seed=seed).plan(0) for seed in (0, 1))
    assert not torch.equal(one[1][one[0].argsort()], other[1][other[0].argsort()])


def mixing(mixup: float, cutmix: float, batch: int = 16, **ranks: Any) -> MixingLoader:
    return MixingLoader(make_split(37), batch, True, 3, num_classes=10, mixup=mixup, cutmix=cutmix, **ranks)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_each_image_is_the_mixture_it_should_be(mixup: float, cutmix: float, channels_last: bool) -> None:
    loader = mixing(mixup, cutmix, batch=9, channels_last=channels_last)
    mixture = epoch_mixture(37, 3, 2, mixup, cutmix)
    assert 0 < mixture[1].float().mean() < 1 if mixup and cutmix else mixture[1].all() == bool(cutmix)
    assert not torch.equal(mixture[0], epoch_mixture(37, 3, 1, mixup, cutmix)[0])
    plain = make_split(37).loader(9, train=True, seed=3, channels_last=channels_last).epoch(2)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for batch, one in zip(loader.epoch(2), plain, strict=True):
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
    result, reach = image.clone(), 4 * (1 - share) ** 0.5
    rows, columns = (slice(max(0, round(c * 8 - reach)), min(8, round(c * 8 + reach))) for c in centre.tolist())
    result[:, rows, columns] = other[:, rows, columns]
    return result, 1 - image[0, rows, columns].numel() / 64


def test_ranks_and_restarts_change_no_mixture() -> None:
    """Parts of 5 and 6 images: partners lie in other parts, too."""
    whole = list(mixing(0.4, 1.0).epoch(1))
    assert same(joined([mixing(0.4, 1.0, rank=rank, world=3).epoch(1) for rank in range(3)]), whole)
    assert same(list(mixing(0.4, 1.0).epoch(1, first_step=1)), whole[1:])
