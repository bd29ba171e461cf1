"""DKD and logit standardisation equal their sums written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses import reference

from nst.losses import DIST, DKD, KD
from nst.losses.base import standardise


def softmax(z: torch.Tensor) -> torch.Tensor:
    return torch.exp(z - z.max()) / torch.exp(z - z.max()).sum()


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return sum((a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True)), torch.zeros(()).double())


def double_loop(student, teacher, labels, t, alpha, beta):
    total = torch.zeros((), dtype=torch.float64)
    for z_s, z_t, y in zip(student, teacher, labels.tolist(), strict=True):
        p_s, p_t = softmax(z_s / t), softmax(z_t / t)
        others = [i for i in range(len(z_s)) if i != y]
        rest_s, rest_t = p_s[others].sum(), p_t[others].sum()
        total = total + alpha * kl(torch.stack((p_t[y], rest_t)), torch.stack((p_s[y], rest_s)))
        total = total + beta * kl(p_t[others] / rest_t, p_s[others] / rest_s)
    return total / len(student)


def plain_standardise(z: torch.Tensor) -> torch.Tensor:
    rows = []
    for row in z:
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / (len(row) - 1)
        rows.append((row - mean) / (variance.sqrt() + 1e-7))
    return torch.stack(rows)


def logits(seed: int, batch: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(2, batch, classes, generator=generator)).double().unbind()
    return student, teacher, torch.randint(classes, (batch,), generator=generator)


@pytest.mark.parametrize(("convention", "power"), [("paper", 0), ("official", 2)])
@pytest.mark.parametrize("standardize", [False, True])
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
    classes=st.integers(2, 6),
    t=st.sampled_from([1.0, 4.0]),
    epoch=st.integers(0, 5),
)
def test_equals_the_sum(convention, power, standardize, seed, batch, classes, t, epoch):
    student, teacher, labels = logits(seed, batch, classes)
    ramp, ready = min(1.0, (epoch + 1) / 4), plain_standardise if standardize else lambda z: z
    expected, expected_gradient = reference.value_and_gradient(
        lambda x: ramp * t**power * double_loop(ready(x), ready(teacher), labels, t, 0.7, 3.0), student
    )
    loss = DKD(t, 0.7, 3.0, 4, convention, standardize)
    extra = {"labels": labels, "epoch": torch.tensor(float(epoch))}
    for dtype, rtol, atol in ((torch.float64, 1e-9, 1e-10), (torch.float32, 1e-5, 2e-6 * t**power)):
        target = loss.target(teacher.to(dtype)) | extra
        value, gradient = reference.value_and_gradient(lambda x, own=target: loss(x, own), student.to(dtype))
        torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)
        torch.testing.assert_close(gradient, expected_gradient, rtol=10 * rtol, atol=atol)


def test_kd_is_a_sum_of_both_parts():
    student, teacher, labels = logits(3, 1, 5)
    extra = {"labels": labels}
    target, others = DKD(1.0, 1.0, 0.0, 0), DKD(1.0, 0.0, 1.0, 0)
    parts = [loss(student, loss.target(teacher) | extra) for loss in (target, others)]
    rest = 1 - softmax(teacher[0])[labels[0]]
    torch.testing.assert_close(parts[0] + rest * parts[1], KD(1.0)(student, KD().target(teacher)))


@pytest.mark.parametrize("make", [KD, DKD, DIST])
def test_standardised_logits(make):
    student, teacher, labels = logits(5, 4, 7)
    extra = {"labels": labels, "epoch": torch.tensor(3.0)}
    found = make(standardize=True)(student, {"logits": teacher} | extra)
    ready = plain_standardise(student), {"logits": plain_standardise(teacher)} | extra
    torch.testing.assert_close(found, make()(*ready))
    scaled = make(standardize=True)(5 * student + 3, {"logits": 0.1 * teacher - 2} | extra)
    torch.testing.assert_close(scaled, found, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("make", [KD, DKD, DIST])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 4), (3, 4), (3, 2)])
@pytest.mark.parametrize("kind", ["zeros", "equal images", "certain"])
def test_degenerate_logits_are_finite(make, standardize, shape, kind):
    row = {"zeros": torch.zeros(shape[1]), "equal images": torch.randn(shape[1]), "certain": torch.zeros(shape[1])}[
        kind
    ]
    row[0] += 200 if kind == "certain" else 0
    x, teacher = row.repeat(shape[0], 1).requires_grad_(True), torch.randn(shape)
    for other in (teacher, x.detach()):
        extra = {"labels": torch.zeros(shape[0], dtype=torch.int64), "epoch": torch.tensor(0.0)}
        x.grad = None
        value = make(standardize=standardize)(x, {"logits": other} | extra)
        value.backward()
        assert value.isfinite()
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() < 1e3
    assert standardise(torch.full((2, 3), 7.0)).abs().max() == 0


def test_what_is_missing_or_out_of_range():
    student, teacher, labels = logits(7, 4, 10)
    with pytest.raises(ValueError, match="'labels'"):
        DKD()(student, DKD().target(teacher))
    with pytest.raises(ValueError, match="'epoch'"):
        DKD()(student, DKD().target(teacher) | {"labels": labels})
    with pytest.raises(ValueError, match="DKD needs both"):
        DKD().spec((10,), (100,))
