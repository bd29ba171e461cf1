import pytest
import torch

from nst.data.batch import Schedule
from nst.data.views import UNLISTED_VIEWS, view_subset


def schedule(n: int, batch: int, rank: int = 0, world: int = 1, train: bool = True, **more: object) -> Schedule:
    settings = {"seed": 5, "num_views": 18, "unaugmented": 8} | more
    return Schedule(
        n,
        batch,
        train,
        settings["seed"],
        rank,
        world,
        settings["num_views"],
        settings["unaugmented"],
        settings.get("subset"),
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("n", "batch", "world"), [(100, 16, 1), (100, 16, 2), (97, 16, 3), (97, 16, 8), (5, 8, 2), (1, 4, 4)]
)
def test_ranks_together_see_each_image_once_as_one_process_would(n: int, batch: int, world: int, train: bool) -> None:
    one = schedule(n, batch, train=train)
    order, views = one.plan(2)
    assert order.sort().values.equal(torch.arange(n))
    ranks = [schedule(n, batch, rank, world, train=train) for rank in range(world)]
    for other in ranks:
        assert torch.equal(other.plan(2)[0], order)
        assert torch.equal(other.plan(2)[1], views)
    parts = [list(rank.parts()) for rank in ranks]
    assert {len(steps) for steps in parts} == {one.steps}
    for step, whole in enumerate(one.parts()):
        mine = [order[steps[step]] for steps in parts]
        assert torch.equal(torch.cat(mine), order[whole])
        sizes = [len(part) for part in mine]
        assert max(sizes) - min(sizes) <= 1


def test_an_image_keeps_its_view_whatever_the_batch_size() -> None:
    small, large = schedule(60, 7), schedule(60, 32)
    assert torch.equal(small.plan(1)[0], large.plan(1)[0])
    assert torch.equal(small.plan(1)[1], large.plan(1)[1])


def test_a_later_first_step_gives_the_rest() -> None:
    steps = list(schedule(60, 7).parts())
    assert list(schedule(60, 7).parts(4)) == steps[4:]
    assert list(schedule(60, 7).parts(len(steps))) == []
    with pytest.raises(ValueError, match="9 steps"):
        list(schedule(60, 7).parts(10))


def test_evaluation_shows_every_image_as_it_is_in_order() -> None:
    order, views = schedule(10, 4, train=False).plan(3)
    assert order.tolist() == list(range(10))
    assert views.tolist() == [8] * 10


def test_as_many_epochs_as_a_subset_has_views_show_each_once() -> None:
    """Wherever they begin; and in one epoch the images are at different ones of their views."""
    subset = view_subset(300, 5, 18)
    for first in (0, 5, 7):
        seen = [[] for _ in range(300)]
        for epoch in range(first, first + 5):
            order, views = schedule(300, 16, subset=subset).plan(epoch)
            slots = (views[:, None] == subset[order]).nonzero()[:, 1]
            assert torch.bincount(slots, minlength=5).min() > 30
            for index, view in zip(order.tolist(), views.tolist(), strict=True):
                seen[index].append(view)
        assert [sorted(views) for views in seen] == subset.tolist()


def test_seeds_go_round_a_subset_differently() -> None:
    one, other = (schedule(40, 8, subset=view_subset(40, 5, 18), seed=seed) for seed in (0, 1))
    assert not torch.equal(*(s.plan(0)[1][s.plan(0)[0].argsort()] for s in (one, other)))


def test_views_that_cannot_be_listed_are_drawn_from_63_bits() -> None:
    views = schedule(50, 8, num_views=None).plan(0)[1]
    assert int(views.min()) >= 0
    assert 2**55 < int(views.max()) < UNLISTED_VIEWS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch size: 0"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"seed": -1}, "seed: -1"),
        ({"subset": torch.zeros(3, 2)}, "views for 3 images were given, the split has 10"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(**({"n": 10, "batch": 4} | settings))
