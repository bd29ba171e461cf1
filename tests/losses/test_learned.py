"""VID and CC equal their sums written out, with gradients of what they learn."""

import math

import pytest
import torch
from tests.losses.reference import feature

from nst.losses import CC, VID, TransferLoss


def built(loss: TransferLoss, student, teacher, seed: int = 0) -> TransferLoss:
    torch.manual_seed(seed)
    loss.setup(tuple(student.shape[1:]), tuple(teacher.shape[1:]))
    return loss.to(student.dtype)


def gradients(value, loss, student):
    return torch.autograd.grad(value, [student, *loss.parameters()])


def one_by_one(weight, x):
    return torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x)


def vid_loop(loss: VID, student, teacher):
    first, second, third = (loss.mean[i].weight for i in (0, 2, 4))
    mean = one_by_one(third, one_by_one(second, one_by_one(first, student).clamp(min=0)).clamp(min=0))
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b in range(len(student)):
        for c in range(teacher.shape[1]):
            variance = torch.log(1 + torch.exp(loss.alpha[c])) + loss.eps
            for difference in (mean[b, c] - teacher[b, c]).flatten():
                total, count = total + 0.5 * (difference**2 / variance + torch.log(variance)), count + 1
    return total / count


def embedded(layer, x):
    rows = x.mean((2, 3)) if x.ndim == 4 else x
    return rows if isinstance(layer, torch.nn.Identity) else rows @ layer.weight.T + layer.bias


def cc_loop(loss: CC, student, teacher, gamma: float, order: int):
    e_s, e_t = embedded(loss.embed_student, student), embedded(loss.embed_teacher, teacher)
    total, count = torch.zeros((), dtype=torch.float64), len(e_s)
    if loss.convention == "crd":
        for b in range(count - 1):
            for d in range(e_s.shape[1]):
                total = total + (e_s[b, d] - e_t[b, d]).abs() * (e_s[b + 1, d] - e_t[b + 1, d]).abs()
        return total / (count - 1)
    for i in range(count):
        for j in range(count):
            kernels = []
            for e in (e_s, e_t):
                cosine = (e[i] * e[j]).sum() / (e[i].square().sum() * e[j].square().sum()).sqrt()
                terms = ((2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1))
                kernels.append(math.exp(-2 * gamma) * sum(terms))
            total = total + (kernels[0] - kernels[1]) ** 2
    return total / count**2


CASES = {
    "vid": (VID, vid_loop),
    "vid narrow": (lambda: VID(0.5, 1e-3), vid_loop),
    "cc": (CC, lambda *a: cc_loop(*a, 0.4, 2)),
    "cc order 3": (lambda: CC(5, 0.7, 3), lambda *a: cc_loop(*a, 0.7, 3)),
    "cc plain": (lambda: CC(None), lambda *a: cc_loop(*a, 0.4, 2)),
    "cc crd": (lambda: CC(6, convention="crd"), lambda *a: cc_loop(*a, 0, 0)),
}
every = pytest.mark.parametrize("name", CASES)


@every
@pytest.mark.parametrize(
    "shapes", [((3, 4, 2, 3), (3, 6, 2, 3)), ((5, 3, 2, 2), (5, 3, 2, 2)), ((2, 7, 1, 1), (2, 2, 1, 1))]
)
def test_equals_the_loops(name, shapes):
    make, loop = CASES[name]
    student, teacher = feature(0, shapes[0], "signed").requires_grad_(True), feature(1, shapes[1], "relu") + 0.1
    loss = built(make(), student, teacher)
    target = loss.target(teacher, tuple(student.shape[1:]))
    value, expected = loss(student, target), loop(loss, student, teacher)
    torch.testing.assert_close(value, expected)
    for found, wanted in zip(gradients(value, loss, student), gradients(expected, loss, student), strict=True):
        torch.testing.assert_close(found, wanted)
    single = built(make(), student.float(), teacher)
    torch.testing.assert_close(
        single(student.float(), single.target(teacher.float())).double(), expected, rtol=1e-4, atol=1e-6
    )


def test_vid_at_another_size():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 8, 8)
    for convention in ("paper", "crd"):
        loss = built(VID(convention=convention), student, teacher)
        assert loss.target(teacher, (3, 4, 4))["feature"].shape == (2, 5, 4, 4)
        assert loss.spec((3, 4, 4), (5, 8, 8)).target == {"feature": (5, 4, 4)}
        assert loss(student, loss.target(teacher, (3, 4, 4))).isfinite()
    start = built(VID(80.0), student, teacher).alpha
    torch.testing.assert_close(torch.nn.functional.softplus(start) + 1e-5, torch.full((5,), 80.0))
