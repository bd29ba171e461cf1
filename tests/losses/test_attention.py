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


def test_zero_at_equality():
    for kind in reference.KINDS:
        x = feature(0, (2, 4, 3, 3), kind).float()
        assert AT()(x, AT().summarize(x)).item() == 0


def test_gradcheck_in_float64():
    for p in (2.0, 3.0):
        student, teacher = feature(0, (2, 3, 2, 3), "signed").requires_grad_(True), feature(1, (2, 4, 2, 3), "relu")
        loss = AT(p=p)
        assert torch.autograd.gradcheck(lambda x, loss=loss, t=teacher: loss(x, loss.summarize(t)), (student,))


def test_zero_maps_have_no_gradient():
    x = torch.zeros(2, 4, 3, 3, requires_grad=True)
    value = AT()(x, AT().summarize(torch.randn(2, 5, 3, 3)))
    value.backward()
    assert value.isfinite()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("scale", [60000.0, 1e-4])
@pytest.mark.parametrize("p", [2.0, 4.0])
def test_half_precision(scale, p):
    loss = AT(p=p)
    student, teacher = feature(0, (2, 4, 3, 3), "signed").sign(), feature(1, (2, 8, 3, 3), "relu").sign()
    teacher[:, 0, 0, 0] = 1
    expected = loss(student, loss.summarize(teacher))
    x = (student * scale).half().requires_grad_(True)
    summary = loss.summarize((teacher * scale).half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, summary)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-4, atol=1e-6)
    assert x.grad.isfinite().all()
    stored = loss(x.detach(), {"attention": summary["attention"].half()})
    torch.testing.assert_close(stored.double(), expected, rtol=1e-2, atol=1e-4)


def test_channels_last_keeps_the_layout():
    x = feature(0, (2, 6, 4, 4), "signed").float().to(memory_format=torch.channels_last).requires_grad_(True)
    AT()(x, AT().summarize(torch.randn(2, 8, 4, 4))).backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_sizes_plan_and_errors():
    loss, teacher = AT(), torch.randn(2, 8, 8, 8)
    summary = loss.summarize(teacher, (4, 4, 4))
    assert loss.plan((4, 4, 4), (8, 8, 8)).summary == {"attention": (16,)}
    assert summary["attention"].shape == (2, 16)
    assert AT(convention="crd").plan((4, 8, 8), (8, 4, 4)).summary == {"attention": (16,)}
    with pytest.raises(ValueError, match="student_shape"):
        loss(torch.randn(2, 4, 8, 8), summary)
    with pytest.raises(ValueError, match="at least 1"):
        AT(p=0.5)
    with pytest.raises(ValueError, match="paper, official, crd"):
        AT(convention="code")  # type: ignore[arg-type]
