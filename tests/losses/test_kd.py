"""KD and cross-entropy equal their sums written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses import reference
from torch.nn import functional as F

from nst.losses import DKD, KD, CrossEntropy


@pytest.mark.parametrize(("convention", "power"), [("paper", 0), ("official", 0), ("crd", 2)])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000), batch=st.integers(1, 3), classes=st.integers(2, 6), t=st.sampled_from([1.0, 4.0, 2.5])
)
def test_equals_the_sum(convention, power, seed, batch, classes, t):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(2, batch, classes, generator=generator)).double().unbind()
    expected, expected_gradient = reference.value_and_gradient(
        lambda x: t**power * reference.kl(x, teacher, t), student
    )
    loss = KD(temperature=t, convention=convention)
    value, gradient = reference.value_and_gradient(lambda x: loss(x, loss.target(teacher.float())), student.float())
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_kd_plan_and_errors():
    loss = KD()
    assert loss.spec((10,), (10,)).target == {"logits": (10,)}
    with pytest.raises(ValueError, match="number of classes"):
        loss.spec((10,), (100,))
    with pytest.raises(ValueError, match="number of classes"):
        loss.target(torch.randn(2, 100), (10,))
    with pytest.raises(ValueError, match=r"\(2, 10\).*\(2, 100\)"):
        loss(torch.randn(2, 10), loss.target(torch.randn(2, 100)))
    with pytest.raises(ValueError, match=r"\[B, classes\]"):
        loss.target(torch.randn(2, 10, 1, 1))


def test_cross_entropy():
    loss, logits, labels = CrossEntropy(), torch.randn(4, 10), torch.tensor([0, 3, 9, 1])
    expected = F.cross_entropy(logits.double(), labels).float()
    torch.testing.assert_close(loss(logits, {"labels": labels}), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(logits, {"labels": labels}), expected)
    assert loss(logits.half(), {"labels": labels}).dtype == torch.float32
    assert loss.source == "labels"
    assert loss.spec((10,), (10,)).target == {}
    with pytest.raises(ValueError, match="labels"):
        loss(logits, {})
    with pytest.raises(TypeError, match="no teacher"):
        loss.target(logits)


def test_label_smoothing_and_mixed_labels() -> None:
    """Against a double loop in float64: label y gets 1 - ε + ε/C, every other class ε/C."""
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 10, dtype=torch.float64), torch.tensor([0, 3, 9, 1])
    log_p = logits.log_softmax(1)
    expected = 0.0
    for i in range(4):
        for c in range(10):
            expected -= float(log_p[i, c]) * (0.1 / 10 + (0.9 if c == labels[i] else 0)) / 4
    assert float(CrossEntropy(label_smoothing=0.1)(logits, {"labels": labels})) == pytest.approx(expected, rel=1e-12)
    mixed = torch.rand(4, 10, dtype=torch.float64).softmax(1)
    assert float(CrossEntropy()(logits, {"labels": mixed})) == pytest.approx(float(-(mixed * log_p).sum(1).mean()))
    one_hot = torch.nn.functional.one_hot(labels, 10).double()
    torch.testing.assert_close(CrossEntropy()(logits, {"labels": one_hot}), CrossEntropy()(logits, {"labels": labels}))
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="label_smoothing is"):
            CrossEntropy(label_smoothing=wrong)


@pytest.mark.parametrize("standardize", [False, True])
def test_a_class_that_the_teacher_does_not_know_adds_nothing(standardize: bool) -> None:
    """A logit of −∞: 0 · log 0 = 0, and standardised over the classes that it knows; finite gradients, in KD and DKD."""
    teacher = torch.tensor([[1.0, 2.0, -torch.inf], [0.3, -0.2, 0.7]], dtype=torch.float64)
    student = torch.tensor([[0.5, 0.2, 0.1], [0.1, 0.4, -0.3]], dtype=torch.float64, requires_grad=True)
    loss = KD(temperature=1.0, standardize=standardize)
    value = loss(student[:1], loss.target(teacher[:1]))
    rows = [row if not standardize else (row - row.mean()) / (row.std() + 1e-7) for row in (teacher[0, :2], student[0])]
    p_t = torch.cat((rows[0].softmax(0), torch.zeros(1, dtype=torch.float64)))
    torch.testing.assert_close(value, F.kl_div(rows[1].log_softmax(0)[None], p_t[None], reduction="batchmean"))
    for kind in (loss, DKD(standardize=standardize, warmup=0)):
        for labels in ((0, 1), (2, 0)):
            target = kind.target(teacher) | {"labels": torch.tensor(labels), "epoch": torch.tensor(0.0)}
            (gradient,) = torch.autograd.grad(kind(student, target), student)
            assert gradient.isfinite().all()
