"""CRD equals its sum written out, draws what it should, and remembers."""

import math

import pytest
import torch
from torch.nn import functional as F

from nst.losses import CRD
from nst.losses.base import random_keys
from nst.losses.crd import Draw

IMAGES, CLASSES = 30, 3
KNOWN = torch.arange(IMAGES) % CLASSES


def built(**options) -> CRD:
    torch.manual_seed(0)
    loss = CRD(**{"dim": 6, "negatives": 7, "temperature": 0.3, **options})
    loss.setup((4, 2, 2), (5, 3, 3))
    loss.init_memory(IMAGES)
    loss.labels.copy_(KNOWN)
    return loss.double()


def batch(size: int = 4, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(size, 4, 2, 2, generator=generator).double().requires_grad_(True)
    teacher = torch.randn(size, 5, 3, 3, generator=generator).double()
    index = torch.randperm(IMAGES, generator=generator)[:size]
    return student, teacher, {"labels": KNOWN[index], "index": index, "seed": torch.tensor(11 * seed)}


def value(loss, student, teacher, extra):
    return loss(student, loss.target(teacher) | extra)


def weights(loss: CRD, extra) -> torch.Tensor:
    """How often each image is a negative, `[B, images]`."""
    return Draw(loss, extra["index"], extra["labels"], extra["seed"]).weights(slice(None), torch.float64)


def published(loss: CRD, student, teacher, extra, z: list[float]):
    """The loss with the negatives that were drawn, each K / their number times; without `z` that of this batch is appended."""
    own, drawn, first = torch.arange(IMAGES) == extra["index"][:, None], weights(loss, extra), not z
    c, total = loss.negatives / IMAGES, torch.zeros((), dtype=torch.float64)
    sides = (loss.embed_student, student, loss.teacher_bank), (loss.embed_teacher, teacher, loss.student_bank)
    for number, (layer, x, bank) in enumerate(sides):
        e = x.mean((2, 3)) @ layer.weight.T + layer.bias
        raw = torch.exp((e / e.square().sum(1, keepdim=True).sqrt()) @ bank.T / loss.temperature)
        if first:
            z.append(((own + drawn) * raw).sum().item() / (own + drawn).sum().item() * IMAGES)
        s = raw / z[number]
        total = total - torch.log(s[own] / (s[own] + c + 1e-7)).sum() - (drawn * torch.log(c / (s + c + 1e-7))).sum()
    return total / len(student)


@pytest.mark.parametrize("options", [{}, {"sampling": "images"}, {"negatives": 500}, {"temperature": 0.07}], ids=str)
@pytest.mark.parametrize("block", [1 << 30, 8 * IMAGES * 2])
def test_equals_the_published_loss(options, block, monkeypatch):
    """Whatever the number of images whose similarities fit into a block."""
    monkeypatch.setattr("nst.losses.crd.BLOCK_BYTES", block)
    loss, z = built(**options), []
    student, teacher, extra = batch()
    expected = published(loss, student, teacher, extra, z)
    wanted = torch.autograd.grad(expected, [student, *loss.parameters()])
    found = value(loss, student, teacher, extra)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(loss.log_z.exp(), torch.tensor(z, dtype=torch.float64))
    for got, want in zip(torch.autograd.grad(found, [student, *loss.parameters()]), wanted, strict=True):
        torch.testing.assert_close(got, want)
    student, teacher, extra = batch(5, seed=2)  # with the Z of the first batch and banks that moved
    expected = published(loss, student, teacher, extra, z)
    torch.testing.assert_close(value(loss, student, teacher, extra), expected)


def test_the_banks_move_towards_the_embeddings_in_training_only():
    loss = built(momentum=0.25)
    student, teacher, extra = batch()
    index, old = extra["index"], loss.student_bank.clone()
    value(loss.eval(), student, teacher, extra)
    assert torch.equal(loss.student_bank, old)
    loss.labels.fill_(-1)
    value(loss.train(), student, teacher, extra)
    assert torch.equal(loss.labels[index], extra["labels"])  # learned as images are seen
    assert (loss.labels == -1).sum() == IMAGES - len(index)
    moved = 0.25 * old[index] + 0.75 * F.normalize(loss.embed_student(student.mean((2, 3))))
    torch.testing.assert_close(loss.student_bank[index], F.normalize(moved).detach())
    rest = [i for i in range(IMAGES) if i not in index]
    assert torch.equal(loss.student_bank[rest], old[rest])


@pytest.mark.parametrize("sampling", ["classes", "images"])
def test_negatives_are_other_images_of_other_classes_each_once(sampling):
    loss, draws = built(sampling=sampling), 200
    _, _, extra = batch(1)
    counts = sum(weights(loss, extra | {"seed": torch.tensor(seed)})[0] for seed in range(draws))
    other = (torch.arange(IMAGES) != extra["index"]) & ((extra["labels"] != KNOWN) | (sampling == "images"))
    allowed = other.nonzero().flatten()
    expected = draws * 7 / len(allowed)
    assert counts.sum() == counts[allowed].sum() == draws * 7
    assert (counts[allowed] - expected).abs().max() < 4.5 * math.sqrt(expected)  # binomial


def test_draws_depend_on_seed_and_image_alone():
    _, _, extra = batch(5)
    first, turned = weights(built(), extra), {name: x.flip(0) if x.ndim else x for name, x in extra.items()}
    assert torch.equal(weights(built(), turned), first.flip(0))
    assert not torch.equal(weights(built(), extra | {"seed": torch.tensor(12345)}), first)
    keys = random_keys(torch.tensor(3), torch.arange(50)[:, None], 200)
    chosen = (keys.double() / 2.0**63 < 0.3).double()  # two images share as many negatives as two independent draws
    shared = (chosen @ chosen.T)[~torch.eye(50, dtype=torch.bool)] / 200
    assert (shared.mean().item(), shared.std().item()) == pytest.approx((0.09, (0.09 * 0.91 / 200) ** 0.5), abs=0.003)
