"""Which images, in which views, a step has: functions of (seed, epoch, index), whatever the number of ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.data.samples import same
from tests.data.test_memory import make_split

from nst.data.batch import UNLISTED_VIEWS, Loader


def loader(n: int, batch: int, train: bool = True, **settings: Any) -> Loader:
    return make_split(n).loader(batch, train=train, **({"seed": 5} | settings))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("n", "batch", "world"), [(97, 16, 8), (1, 4, 4)])
def test_ranks_together_see_each_image_once_as_one_process_would(n: int, batch: int, world: int, train: bool) -> None:
    """Also after a restart inside an epoch; the global generator is left alone."""
    state = torch.get_rng_state()
    one = list(loader(n, batch, train).epoch(2))
    ranks = [list(loader(n, batch, train, rank=rank, world=world).epoch(2)) for rank in range(world)]
    for whole, *parts in zip(one, *ranks, strict=True):
        sizes = [len(part.labels) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert all(part.images.shape[1:] == (3, 8, 8) for part in parts)
        assert all(torch.equal(whole[field], torch.cat([part[field] for part in parts])) for field in range(4))
    indices = torch.cat([batch.indices for batch in one])
    assert indices.sort().values.equal(torch.arange(n))
    if not train:
        assert indices.tolist() == list(range(n))
        assert all(view == make_split(n).unaugmented for batch in one for view in batch.views.tolist())
    assert same(list(loader(n, batch, train).epoch(2, first_step=3)), one[3:])
    assert torch.equal(state, torch.get_rng_state())


def test_order_and_views_are_as_published_whatever_the_batch_size() -> None:
    """So that another program can say which view an image had."""
    order, views = loader(50, 7, seed=3).plan(7)
    assert order.tolist() == np.random.default_rng([3, 7, 0]).permutation(50).tolist()
    assert views.tolist() == np.random.default_rng([3, 7, 1]).integers(0, 50, 50)[order].tolist()
    for seed, epoch in ((3, 8), (4, 7)):
        assert not torch.equal(order, loader(50, 7, seed=seed).plan(epoch)[0])
    assert all(torch.equal(a, b) for a, b in zip(loader(50, 32, seed=3).plan(7), (order, views), strict=True))


def test_views_are_uniform_and_unlisted_ones_hardly_ever_repeat() -> None:
    it = loader(10_000, 16)
    assert (torch.bincount(it.plan(0)[1], minlength=50) - 200).abs().max() < 6 * 200**0.5
    it.split.num_views = None
    views = it.plan(0)[1]
    assert views.unique().numel() == 10_000
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
