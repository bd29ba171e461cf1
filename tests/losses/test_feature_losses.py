"""Losses on features equal their sums written out in float64, value and gradients, and are well defined at the edges."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.losses.reference import check, feature, value_and_gradient
from torch import Tensor
from torch.nn import functional as F

from nst.losses import AT, CC, PKT, RKD, SP, VID, FitNet


def pooled(x: Tensor) -> Tensor:
    return x.flatten(2).sum(2) / x[0, 0].numel()


def one_by_one(weight: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x)


def at(power: Callable[[Tensor], Tensor], factor: float = 0.5, eps: float = 0.0, length: bool = False) -> Any:
    """Mean squared difference of the unit attention maps; with `length` the length of the difference."""

    def loop(loss: AT, student: Tensor, teacher: Tensor) -> Tensor:
        maps = []
        for x in (student, teacher):
            values = power(x.flatten(2)).sum(1)
            maps.append(values / ((values**2).sum(1, keepdim=True).sqrt() + eps))
        squared = ((maps[0] - maps[1]) ** 2).sum(1)
        return (squared.sqrt() if length else factor * squared / maps[0].shape[1]).mean()

    return loop


def fitnet(factor: float, normed: bool = False) -> Any:
    def loop(loss: FitNet, student: Tensor, teacher: Tensor) -> Tensor:
        convolution = loss.regressor[0] if normed else loss.regressor
        x: Tensor = convolution(student)
        if normed:
            norm = loss.regressor[1]
            x = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps).clamp(min=0)
        return factor * ((x - teacher) ** 2).sum() / teacher.numel()

    return loop


def vid(loss: VID, student: Tensor, teacher: Tensor) -> Tensor:
    first, second, third = (loss.mean[i].weight for i in (0, 2, 4))
    mean = one_by_one(third, one_by_one(second, one_by_one(first, student).clamp(min=0)).clamp(min=0))
    variance = (torch.log(1 + torch.exp(loss.alpha)) + loss.eps)[:, None, None]
    return 0.5 * ((mean - teacher) ** 2 / variance + torch.log(variance)).sum() / teacher.numel()


def embedded(layer: Any, x: Tensor) -> Tensor:
    return pooled(x) if isinstance(layer, torch.nn.Identity) else pooled(x) @ layer.weight.T + layer.bias


def cosines(x: Tensor, eps: float = 0.0) -> Tensor:
    """Between the rows of a matrix."""
    unit = x / ((x * x).sum(1, keepdim=True).sqrt() + eps)
    return unit @ unit.T


def cc(gamma: float, order: int) -> Any:
    def loop(loss: CC, student: Tensor, teacher: Tensor) -> Tensor:
        kernels = []
        for layer, x in ((loss.embed_student, student), (loss.embed_teacher, teacher)):
            angles = cosines(embedded(layer, x))
            terms = [(2 * gamma * angles) ** p / math.factorial(p) for p in range(order + 1)]
            kernels.append(math.exp(-2 * gamma) * torch.stack(terms).sum(0))
        return ((kernels[0] - kernels[1]) ** 2).mean()

    return loop


def cc_crd(loss: CC, student: Tensor, teacher: Tensor) -> Tensor:
    rows = (embedded(loss.embed_student, student) - embedded(loss.embed_teacher, teacher)).abs()
    return (rows[1:] * rows[:-1]).sum() / (len(rows) - 1)


def sp(loss: SP, student: Tensor, teacher: Tensor) -> Tensor:
    grams = [x.flatten(1) @ x.flatten(1).T for x in (student, teacher)]
    units = [gram / (gram * gram).sum(1, keepdim=True).sqrt() for gram in grams]
    return ((units[0] - units[1]) ** 2).sum() / len(student) ** 2


def pkt(own: bool, eps: float) -> Any:
    def loop(loss: PKT, student: Tensor, teacher: Tensor) -> Tensor:
        others = torch.ones(len(student), len(student)) - (0 if own else torch.eye(len(student)))
        kernels = [(cosines(pooled(x), eps) + 1) / 2 * others for x in (student, teacher)]
        s, t = ((kernel / kernel.sum(1, keepdim=True))[others > 0] for kernel in kernels)
        return (t * torch.log((t + eps) / (s + eps))).sum() / len(student) ** 2

    return loop


def rkd(w_d: float, w_a: float, every: bool) -> Any:
    """Pairs and triples with an image twice have distance and angle 0, or angle 1, on both sides: only their number counts."""

    def loop(loss: RKD, student: Tensor, teacher: Tensor) -> Tensor:
        n, lengths, angles = len(student), [], []
        for x in (pooled(student), pooled(teacher)):
            apart = x[:, None] - x
            length = apart.norm(dim=2)
            lengths.append(length / length.sum() * n * (n - 1))
            unit = apart / (length + torch.eye(n))[..., None]
            angles.append(torch.einsum("ijc,kjc->ijk", unit, unit))
        pairs, triples = (n**2, n**3) if every else (n * (n - 1), n * (n - 1) * (n - 2))
        d, a = (F.smooth_l1_loss(*sides, reduction="sum") for sides in (lengths, angles))
        return w_d * d / pairs + w_a * a / triples

    return loop


CASES: dict[str, tuple[Any, Any]] = {
    "at": (AT, at(lambda x: x**2)),
    "at, p = 1.5": (lambda: AT(1.5, "official"), at(lambda x: x.abs() ** 1.5)),
    "at crd": (lambda: AT(4.0, "crd"), at(lambda x: x**4, 1.0)),
    "at crd, signed": (lambda: AT(3.0, "crd"), at(lambda x: x**3, 1.0)),
    "at zoo": (lambda: AT(3.0, "zoo"), at(lambda x: x.abs() ** 3, 1.0, 1e-6)),
    "at torchdistill": (lambda: AT(convention="torchdistill"), at(lambda x: x**2, length=True)),
    "fitnet": (FitNet, fitnet(0.5)),
    "fitnet crd": (lambda: FitNet("crd"), fitnet(1.0)),
    "fitnet normed": (lambda: FitNet("crd", "conv_bn_relu"), fitnet(1.0, normed=True)),
    "vid": (VID, vid),
    "vid narrow": (lambda: VID(0.5, 1e-3), vid),
    "cc": (CC, cc(0.4, 2)),
    "cc order 3": (lambda: CC(5, 0.7, 3), cc(0.7, 3)),
    "cc plain": (lambda: CC(None), cc(0.4, 2)),
    "cc crd": (lambda: CC(6, convention="crd"), cc_crd),
    "sp": (SP, sp),
    "rkd": (lambda: RKD(3.0, 5.0), rkd(3.0, 5.0, every=False)),
    "rkd crd": (lambda: RKD(3.0, 5.0, "crd"), rkd(3.0, 5.0, every=True)),
    "pkt": (PKT, pkt(own=False, eps=0.0)),
    "pkt crd": (lambda: PKT("crd"), pkt(own=True, eps=1e-7)),
}
relational = pytest.mark.parametrize("make", [SP, RKD, lambda: RKD(convention="crd"), PKT, lambda: PKT("crd")])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("batch", "student", "teacher"), [(3, 4, 6), (5, 3, 3), (4, 7, 2)])
def test_equals_the_loops(name, batch, student, teacher):
    make, loop = CASES[name]
    if name == "cc plain":
        student = teacher
    x, y = feature(batch, (batch, student, 2, 3), "signed"), feature(1, (batch, teacher, 2, 3), "relu") + 0.1
    rough = 2e-3 if name.startswith("pkt") else 1e-4  # PKT: the logarithm of cos + 1 near cos = −1
    check(make, lambda loss, x: loop(loss, x, y), x, y, rough=rough)


@pytest.mark.parametrize("sizes", [((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((3, 8, 6), (5, 7, 3))])
def test_crd_s_regressor_goes_to_the_teacher_s_size(sizes):
    student, teacher = (feature(0, (4, *size), "signed") for size in sizes)
    loop = fitnet(1.0, normed=True)
    check(lambda: FitNet("crd", "conv_bn_relu"), lambda loss, x: loop(loss, x, teacher), student, teacher, rough=1e-4)


@pytest.mark.parametrize("make", [AT, FitNet, VID])
def test_maps_of_other_sizes(make):
    """The target is of the student's size, in CRD's convention of the smaller one."""
    student, teacher = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 8, 8)
    for loss in (make(convention="crd"), make()):
        loss.setup((5, 4, 4), (5, 8, 8))
        target = loss.target(teacher, (5, 4, 4))
        assert [tuple(value.shape) for value in target.values()] == [(2, 16) if make is AT else (2, 5, 4, 4)]
        assert loss(student, target).isfinite()
    with pytest.raises(ValueError, match="student_shape"):
        loss(torch.randn(2, 5, 8, 8), target)
    if make is FitNet:
        normed, plain = FitNet("crd", "conv_bn_relu"), FitNet(regressor="none")
        with pytest.raises(ValueError, match=r"4×4.*12×12"):
            normed.target_shapes((3, 4, 4), (5, 12, 12))
        with pytest.raises(ValueError, match="equal channels"):
            plain.target_shapes((3, 4, 4), (5, 4, 4))
        assert plain.target_key == FitNet().target_key != normed.target_key


@relational
def test_zero_for_one_image_and_large_features_do_not_become_zero(make):
    one = torch.randn(1, 4, 3, 3)
    value, gradient = value_and_gradient(lambda x: make()(x, make().target(torch.randn(1, 6, 3, 3))), one)
    assert value == 0
    assert gradient.abs().max() < 1e-9
    student, teacher, loss = torch.randn(4, 8, 3, 3), torch.randn(4, 5, 3, 3), make()
    expected = loss(student, loss.target(teacher))
    torch.testing.assert_close(loss(student * 1e15, loss.target(teacher * 1e15)), expected, rtol=1e-3, atol=1e-5)


def test_the_angles_of_rkd_come_in_blocks(monkeypatch):
    student, teacher = torch.randn(9, 8), torch.randn(9, 5)
    loss = RKD()
    expected = value_and_gradient(lambda x: loss(x, loss.target(teacher)), student)
    monkeypatch.setattr("nst.losses.relational.BLOCK_BYTES", 8 * 81 * 2)
    torch.testing.assert_close(value_and_gradient(lambda x: loss(x, loss.target(teacher)), student), expected)
