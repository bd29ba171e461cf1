"""AT equals its double loop and is well defined for zero maps and half precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses import reference
from tests.losses.reference import assert_equal, feature, feature_pairs

from nst.losses import AT


@pytest.mark.parametrize("convention", ["paper", "official", "crd"])
@settings(max_examples=25, deadline=None)
@given(pair=feature_pairs(), p=st.sampled_from([2.0, 4.0, 1.5]))
def test_equals_the_double_loop(convention, pair, p):
    factor = 1.0 if convention == "crd" else 0.5
    assert_equal(AT(p=p, convention=convention), *pair, lambda s, t: factor * reference.attention(s, t, p))


@settings(max_examples=25, deadline=None)
@given(pair=feature_pairs(), p=st.sampled_from([2.0, 3.0]))
def test_torchdistill_is_the_length_of_the_difference(pair, p):
    def double_loop(s, t):
        total = torch.zeros((), dtype=torch.float64)
        for one_s, one_t in zip(s, t, strict=True):
            squared = reference.attention(one_s[None], one_t[None], p) * one_s[0].numel()
            total = total + (squared.sqrt() if squared > 0 else squared)
        return total / len(s)

    expected, _ = reference.value_and_gradient(lambda x: double_loop(x, pair[1]), pair[0])
    loss = AT(p=p, convention="torchdistill")
    value, gradient = reference.value_and_gradient(lambda x: loss(x, loss.target(pair[1].float())), pair[0].float())
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=2e-6)
    assert gradient.isfinite().all()


def plain_map(image: torch.Tensor, power, eps: float) -> torch.Tensor:
    values = torch.stack([power(channel).flatten() for channel in image]).sum(0)
    return values / (values.square().sum().sqrt() + eps)


@pytest.mark.parametrize(
    ("p", "convention", "power", "eps"),
    [
        (3.0, "crd", lambda x: x**3, 0.0),
        (1.0, "crd", lambda x: x, 0.0),
        (2.0, "zoo", lambda x: x**2, 1e-6),
        (3.0, "zoo", lambda x: x.abs() ** 3, 1e-6),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_signed_powers_and_the_zoos_epsilon(p, convention, power, eps, scale):
    student, teacher = feature(0, (3, 4, 2, 3), "signed") * scale, feature(1, (3, 5, 2, 3), "signed") * scale

    def double_loop(s, t):
        pairs = zip(s, t, strict=True)
        return torch.stack(
            [(plain_map(a, power, eps) - plain_map(b, power, eps)).square().mean() for a, b in pairs]
        ).mean()

    assert_equal(AT(p=p, convention=convention), student, teacher, double_loop)
    x = student.clone().requires_grad_(True)
    loss = AT(p=p, convention=convention)
    assert torch.autograd.gradcheck(lambda y: loss(y / scale, loss.target(teacher)), (x / scale,))


def test_conventions_that_differ_share_no_cache():
    keys = [AT(p, c).target_key for p, c in ((3.0, "paper"), (3.0, "crd"), (3.0, "zoo"), (2.0, "paper"), (2.0, "crd"))]
    assert len(set(keys)) == len(keys)
    assert AT(convention="torchdistill").target_key == AT().target_key


def test_overflow_is_not_a_zero_map():
    x = torch.randn(2, 4, 3, 3) * 1e20
    assert AT()(x, AT().target(torch.randn(2, 4, 3, 3))).isnan()


def test_sizes():
    loss, teacher = AT(), torch.randn(2, 8, 8, 8)
    assert loss.spec((4, 4, 4), (8, 8, 8)).target == {"attention": (16,)}
    assert loss.target(teacher, (4, 4, 4))["attention"].shape == (2, 16)
    assert AT(convention="crd").spec((4, 8, 8), (8, 4, 4)).target == {"attention": (16,)}
    with pytest.raises(ValueError, match="student_shape"):
        loss(torch.randn(2, 4, 8, 8), loss.target(teacher, (4, 4, 4)))
