import pytest
import torch

from nst.data.dataset import balanced, hold_out, training_parts

LABELS = torch.tensor([0] * 10 + [1] * 20 + [2] * 3)[torch.randperm(33, generator=torch.Generator().manual_seed(1))]


def test_a_limit_balances_classes_and_only_grows() -> None:
    chosen = [set(balanced(LABELS, n).tolist()) for n in range(34)]
    for n in range(33):
        assert len(chosen[n]) == n
        assert chosen[n] < chosen[n + 1]
    assert LABELS[balanced(LABELS, 9)].bincount().tolist() == [3, 3, 3]
    assert LABELS[balanced(LABELS, 23)].bincount().tolist() == [10, 10, 3]


def test_the_held_out_part_is_stratified_and_apart() -> None:
    kept, held = hold_out(LABELS, 0.2)
    assert LABELS[held].bincount().tolist() == [2, 4, 1]
    assert torch.cat([kept, held]).sort().values.equal(torch.arange(33))


def test_no_class_is_emptied() -> None:
    kept, _ = hold_out(LABELS, 0.99)
    assert LABELS[kept].bincount().tolist() == [1, 1, 1]


def test_nothing_held_out_keeps_all() -> None:
    kept, held = hold_out(LABELS, 0.0)
    assert kept.equal(torch.arange(33))
    assert len(held) == 0


def test_validation_does_not_change_with_the_limit() -> None:
    train, held = training_parts(LABELS, 3, 0.2, 6)
    assert held.equal(training_parts(LABELS, 3, 0.2, None)[1])
    assert not set(train.tolist()) & set(held.tolist())
    assert len(train) == 6


@pytest.mark.parametrize("limit", [2, 28])
def test_an_impossible_limit_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"data.limit: {limit}; the training set has 26 images of 3 classes"):
        training_parts(LABELS, 3, 0.2, limit)
