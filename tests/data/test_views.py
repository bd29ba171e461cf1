import numpy as np
import pytest
import torch

from nst.data.views import UNLISTED_VIEWS, ViewScheme, epoch_order, epoch_views, view_subset


@pytest.mark.parametrize(("pad", "flip", "views"), [(4, True, 162), (4, False, 81), (1, False, 9), (0, False, 1)])
def test_views_are_numbered_without_gaps(pad: int, flip: bool, views: int) -> None:
    scheme = ViewScheme(8, pad, flip)
    assert scheme.num_views == views
    dy, dx, mirrored = scheme.decode(torch.arange(views))
    assert len(set(zip(dy.tolist(), dx.tolist(), mirrored.tolist(), strict=True))) == views
    assert int(dy.max()) == int(dx.max()) == 2 * pad
    assert [part.item() for part in scheme.decode(torch.tensor(scheme.unaugmented))] == [pad, pad, False]
    rebuilt = (dy * scheme.offsets + dx) * (2 if flip else 1) + mirrored
    assert torch.equal(rebuilt, torch.arange(views))


def test_order_and_views_follow_seed_and_epoch_alone() -> None:
    assert torch.equal(epoch_order(50, 3, 7), epoch_order(50, 3, 7))
    assert epoch_order(50, 3, 7).sort().values.equal(torch.arange(50))
    for other in [(3, 8), (4, 7)]:
        assert not torch.equal(epoch_order(50, 3, 7), epoch_order(50, *other))
        assert not torch.equal(epoch_views(50, 3, 7, 162), epoch_views(50, *other, 162))
    # the published definition, so that another program can say which view an image had
    expected = np.random.default_rng([3, 7, 1]).integers(0, 162, 50)
    assert epoch_views(50, 3, 7, 162).tolist() == expected.tolist()
    assert epoch_order(50, 3, 7).tolist() == np.random.default_rng([3, 7, 0]).permutation(50).tolist()


def test_views_are_uniform() -> None:
    counts = torch.bincount(epoch_views(162_000, 0, 0, 162), minlength=162)
    assert (counts - 1000).abs().max() < 6 * 1000**0.5


def test_unlisted_views_hardly_ever_repeat() -> None:
    views = epoch_views(10_000, 0, 0, UNLISTED_VIEWS)
    assert views.unique().numel() == 10_000
    assert int(views.min()) >= 0


def test_a_subset_has_distinct_views_and_grows() -> None:
    small, large = view_subset(200, 4, 18), view_subset(200, 9, 18)
    assert small.shape == (200, 4)
    for few, many in zip(small.tolist(), large.tolist(), strict=True):
        assert len(set(few)) == 4
        assert set(few) <= set(many)
    assert torch.equal(view_subset(5, 18, 18), torch.arange(18).expand(5, 18))


@pytest.mark.parametrize("k", [0, 19])
def test_a_subset_of_impossible_size_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"{k}; this data set has 1 to 18"):
        view_subset(5, k, 18)


@pytest.mark.parametrize(
    ("pad", "flip", "key"), [(-1, True, "pad"), (64, True, "pad"), ("a", True, "pad"), (1, "no", "flip")]
)
def test_a_scheme_that_makes_no_sense_is_refused(pad: int, flip: bool, key: str) -> None:
    with pytest.raises(ValueError, match=f"data.{key}"):
        ViewScheme(8, pad, flip)
