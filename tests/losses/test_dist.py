"""DIST equals Pearson's correlations written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses import reference

from nst.losses import DIST


def correlation(a: list[torch.Tensor], b: list[torch.Tensor], eps: float) -> torch.Tensor:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    squares = [sum((x - mean) ** 2 for x in values) for values, mean in ((a, mean_a), (b, mean_b))]
    return product / (squares[0].sqrt() * squares[1].sqrt() + eps)


def double_loop(student, teacher, t, beta, gamma, eps):
    p_s, p_t = ((z / t).exp() / (z / t).exp().sum(1, keepdim=True) for z in (student, teacher))
    inter = [correlation([*p_s[i]], [*p_t[i]], eps) for i in range(len(p_s))]
    intra = [correlation([*p_s[:, c]], [*p_t[:, c]], eps) for c in range(p_s.shape[1])]
    return beta * (1 - sum(inter) / len(inter)) + gamma * (1 - sum(intra) / len(intra))


@pytest.mark.parametrize(("convention", "power", "eps"), [("paper", 0, 0.0), ("official", 2, 1e-8)])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), batch=st.integers(2, 5), classes=st.integers(2, 6), t=st.sampled_from([1.0, 4.0]))
def test_equals_the_sum(convention, power, eps, seed, batch, classes, t):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(2, batch, classes, generator=generator)).double().unbind()
    expected, expected_gradient = reference.value_and_gradient(
        lambda x: t**power * double_loop(x, teacher, t, 1.5, 0.7, eps), student
    )
    loss = DIST(t, 1.5, 0.7, convention)
    value, gradient = reference.value_and_gradient(lambda x: loss(x, loss.target(teacher)), student)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-8)
    single, rough = reference.value_and_gradient(lambda x: loss(x, loss.target(teacher.float())), student.float())
    torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-4)
    assert (rough - expected_gradient).norm() <= 1e-2 * expected_gradient.norm() + 1e-5


def test_zero_where_the_student_is_a_shifted_teacher():
    teacher = torch.randn(4, 6).double()
    assert abs(DIST()(teacher + 3, DIST().target(teacher)).item()) < 1e-12
    assert DIST.relational


def test_constant_classes_and_images_count_as_uncorrelated():
    teacher = torch.randn(5, 3)
    for convention in ("paper", "official"):
        loss = DIST(1.0, 2.0, 3.0, convention)
        x = torch.full((5, 3), 0.1).requires_grad_(True)
        value = loss(x, loss.target(teacher))
        value.backward()
        assert value.item() == 5
        assert (x.grad == 0).all()
    one = torch.randn(1, 3)
    torch.testing.assert_close(DIST()(one, DIST().target(one)), torch.tensor(2.0))  # one image: no intra-class relation
