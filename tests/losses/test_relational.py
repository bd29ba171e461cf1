"""SP, RKD and PKT equal their loops, value and gradient, and are well defined where images coincide."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses import relational_reference as loops
from tests.losses.reference import feature, value_and_gradient

from nst.losses import PKT, RKD, SP, TransferLoss

CASES = {
    "sp": (SP, loops.sp),
    "rkd": (lambda: RKD(3.0, 5.0), lambda s, t: loops.rkd(s, t, 3.0, 5.0, every=False)),
    "rkd crd": (lambda: RKD(3.0, 5.0, "crd"), lambda s, t: loops.rkd(s, t, 3.0, 5.0, every=True)),
    "pkt": (PKT, lambda s, t: loops.pkt(s, t, own=False, eps=0.0)),
    "pkt crd": (lambda: PKT("crd"), lambda s, t: loops.pkt(s, t, own=True, eps=1e-7)),
}
every = pytest.mark.parametrize("name", CASES)


def make(name: str) -> TransferLoss:
    return CASES[name][0]()


def value(loss: TransferLoss, student, teacher):
    return loss(student, loss.target(teacher, tuple(student.shape[1:])))


@st.composite
def batches(draw):
    batch, seed = draw(st.integers(3, 5)), draw(st.integers(0, 10_000))
    sides = [(draw(st.integers(2, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3))) for _ in range(2)]
    kinds = [draw(st.sampled_from(["signed", "relu"])) for _ in range(2)]
    student, teacher = (feature(seed + i, (batch, *sides[i]), kinds[i]) for i in range(2))
    return student, teacher


@every
@settings(max_examples=15, deadline=None)
@given(pair=batches())
def test_equals_the_loops(name, pair):
    student, teacher = pair
    if any((x.mean((2, 3)).square().sum(1) < 1e-3).any() for x in pair):
        return  # near zero vectors: angles of nothing
    expected, expected_gradient = value_and_gradient(lambda x: CASES[name][1](x, teacher), student)
    found, gradient = value_and_gradient(lambda x: value(make(name), x, teacher), student)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)
    single, rough = value_and_gradient(lambda x: value(make(name), x, teacher.float()), student.float())
    torch.testing.assert_close(single, expected, rtol=2e-3, atol=1e-6)  # PKT: the logarithm of cos + 1 near cos = −1
    assert (rough - expected_gradient).norm() <= 5e-3 * expected_gradient.norm() + 1e-5


@every
def test_zero_for_one_image(name):
    one = torch.randn(1, 4, 3, 3, requires_grad=True)
    found = value(make(name), one, torch.randn(1, 6, 3, 3))
    found.backward()
    assert found.item() == 0
    assert (one.grad == 0).all()


@every
def test_large_features_do_not_become_zero(name):
    student, teacher = torch.randn(4, 8, 3, 3), torch.randn(4, 5, 3, 3)
    found = value(make(name), student * 1e15, teacher * 1e15)
    torch.testing.assert_close(found, value(make(name), student, teacher), rtol=1e-3, atol=1e-5)
    found = value(make(name), student * 1e22, teacher)
    assert found.isnan() or (found - value(make(name), student, teacher)).abs() < 1e-3 * found + 1e-5


def test_the_angles_of_rkd_come_in_blocks(monkeypatch):
    student, teacher = torch.randn(9, 8), torch.randn(9, 5)
    expected = value_and_gradient(lambda x: value(RKD(), x, teacher), student)
    monkeypatch.setattr("nst.losses.rkd.BLOCK_BYTES", 8 * 81 * 2)
    torch.testing.assert_close(value_and_gradient(lambda x: value(RKD(), x, teacher), student), expected)
