"""ReviewKD equals its description written out, and fuses from the deepest layer up."""

import pytest
import torch
from torch.nn import functional as F

from nst.losses import ReviewKD

STUDENT = [(3, 8, 8), (5, 4, 4), (6, 2, 2)]
TEACHER = [(4, 8, 8), (7, 4, 4), (9, 2, 2)]


def batch(shapes, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *shape, generator=generator).double() for shape in shapes]


def built(students=STUDENT, teachers=TEACHER, **options) -> ReviewKD:
    torch.manual_seed(0)
    loss = ReviewKD(**options)
    loss.setup(students, teachers)
    return loss.double()


def value(loss, students, teachers, epoch: float = 1e6):
    extra = {"epoch": torch.tensor(epoch)}
    return loss(students, [loss.target(teacher) | extra for teacher in teachers])


def normed(x, norm):
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def distance(s, t):
    value, total = ((s - t) ** 2).mean(), 1.0
    sides = [side for side in (4, 2, 1) if side < s.shape[2]]
    for k, side in enumerate(sides, start=1):
        value, total = value + (F.adaptive_avg_pool2d(s - t, side) ** 2).mean() / 2**k, total + 1 / 2**k
    return value / total


def by_hand(loss, students, teachers, pooled=True):
    students, teachers = ([x[..., None, None] if x.ndim == 2 else x for x in side] for side in (students, teachers))
    if pooled:
        students = [*students, students[-1].mean((2, 3), keepdim=True)]
        teachers = [*teachers, teachers[-1].mean((2, 3), keepdim=True)]
    below, total = None, 0.0
    for k in reversed(range(len(students))):
        stage, teacher = loss.stages[k], teachers[k]
        x = normed(F.conv2d(students[k], stage.enter[0].weight), stage.enter[1])
        if below is not None:
            below = F.interpolate(below, x.shape[2:])
            attention = stage.attention[0]
            both = torch.einsum("oc,bchw->bohw", attention.weight[:, :, 0, 0], torch.cat((x, below), 1))
            first, second = torch.sigmoid(both + attention.bias.view(1, 2, 1, 1)).unbind(1)
            x = x * first.unsqueeze(1) + below * second.unsqueeze(1)
        below = F.interpolate(x, teacher.shape[2:])
        total = total + distance(normed(F.conv2d(below, stage.leave[0].weight, padding=1), stage.leave[1]), teacher)
    return total


CASES: list[tuple[list, list, bool]] = [
    (STUDENT, TEACHER, True),
    (STUDENT, TEACHER, False),
    ([(3, 8, 8), (5, 4, 4)], [(4, 4, 4), (7, 8, 8)], True),
    ([(3, 5, 5)], [(4, 6, 6)], False),
    ([(3, 6, 2), (5, 3, 3)], [(4, 8, 4), (7, 3, 8)], True),  # which cells are compared is decided by H
    ([(3, 4, 4), (9,)], [(4, 8, 8), (7,)], False),  # the second layer is the pooled vector
]


@pytest.mark.parametrize(("students", "teachers", "pooled"), CASES)
def test_equals_the_description(students, teachers, pooled):
    loss = built(students, teachers, pooled=pooled)
    own, others = [x.requires_grad_(True) for x in batch(students)], batch(teachers, seed=1)
    found, expected = value(loss, own, others), by_hand(loss, own, others, pooled)
    inputs = [*own, *loss.parameters()]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs))


def test_the_warm_up_counts_epochs_from_one():
    loss, own, others = built(warmup=4), batch(STUDENT), batch(TEACHER, seed=1)
    full = value(loss, own, others)
    for epoch, part in ((0.9, 0.25), (1.0, 0.5), (9.0, 1.0)):
        torch.testing.assert_close(value(loss, own, others, epoch), part * full)
    torch.testing.assert_close(value(built(warmup=0), own, others, 0.0), full)
