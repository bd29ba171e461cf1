"""CRD equals its sum written out, draws what it should, and remembers."""

import math

import pytest
import torch
from torch.nn import functional as F

from nst.losses import CRD
from nst.losses.crd import Draw, random_keys

IMAGES, CLASSES = 30, 3
KNOWN = torch.arange(IMAGES) % CLASSES


def built(seed: int = 0, dtype=torch.float64, **options) -> CRD:
    torch.manual_seed(seed)
    loss = CRD(**{"dim": 6, "negatives": 7, "temperature": 0.3, **options})
    loss.setup((4, 2, 2), (5, 3, 3))
    loss.init_memory(IMAGES)
    loss.labels.copy_(KNOWN)
    return loss.to(dtype)


def batch(size: int = 4, seed: int = 1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(size, 4, 2, 2, generator=generator).to(dtype).requires_grad_(True)
    teacher = torch.randn(size, 5, 3, 3, generator=generator).to(dtype)
    index = torch.randperm(IMAGES, generator=generator)[:size]
    return student, teacher, {"labels": KNOWN[index], "index": index, "seed": torch.tensor(11 * seed)}


def value(loss, student, teacher, extra):
    return loss(student, loss.target(teacher) | extra)


def drawn(loss: CRD, extra) -> list[list[int]]:
    draw = Draw(loss, extra["index"], extra["labels"], extra["seed"])
    return [row.nonzero().flatten().tolist() for row in draw.weights(slice(None), torch.float64)]


def embeddings(layer, x):
    rows = x.mean((2, 3)) @ layer.weight.T + layer.bias
    return [row / row.square().sum().sqrt() for row in rows]


def loop(loss: CRD, student, teacher, extra, z: list[float]):
    """The published loss with the negatives that were drawn, each K / their number times."""
    c, negatives = loss.negatives / IMAGES, drawn(loss, extra)
    total = torch.zeros((), dtype=torch.float64)
    sides = (
        (embeddings(loss.embed_student, student), loss.teacher_bank),
        (
            embeddings(loss.embed_teacher, teacher),
            loss.student_bank,
        ),
    )
    for (embedded, bank), own_z in zip(sides, z, strict=True):
        for e, i, others in zip(embedded, extra["index"].tolist(), negatives, strict=True):
            s = torch.exp((bank * e).sum(1) / loss.temperature) / own_z
            total = total - torch.log(s[i] / (s[i] + c + 1e-7))
            for j in others:
                total = total - loss.negatives / len(others) * torch.log(c / (s[j] + c + 1e-7))
    return total / len(student)


@pytest.mark.parametrize("options", [{}, {"sampling": "images"}, {"negatives": 500}, {"temperature": 0.07}], ids=str)
def test_equals_the_published_loss(options):
    loss = built(**options)
    student, teacher, extra = batch()
    z = []
    for layer, x, bank in (
        (loss.embed_student, student, loss.teacher_bank),
        (loss.embed_teacher, teacher, loss.student_bank),
    ):
        scores, count = 0.0, 0.0
        rows = zip(embeddings(layer, x), extra["index"].tolist(), drawn(loss, extra), strict=True)
        for e, i, others in rows:
            raw = torch.exp((bank * e.detach()).sum(1) / loss.temperature)
            scores += raw[i].item() + loss.negatives / len(others) * raw[others].sum().item()
            count += 1 + loss.negatives
        z.append(scores / count * IMAGES)
    expected = loop(loss, student, teacher, extra, z)
    wanted = torch.autograd.grad(expected, [student, *loss.parameters()])
    found = value(loss, student, teacher, extra)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(loss.log_z.exp(), torch.tensor(z, dtype=torch.float64))
    for got, want in zip(torch.autograd.grad(found, [student, *loss.parameters()]), wanted, strict=True):
        torch.testing.assert_close(got, want)
    student, teacher, extra = batch(5, seed=2)  # with the Z of the first batch and banks that moved
    expected = loop(loss, student, teacher, extra, z)
    torch.testing.assert_close(value(loss, student, teacher, extra), expected)


def test_blocks_change_nothing(monkeypatch):
    student, teacher, extra = batch(7)
    expected = value(built(), student, teacher, extra)
    monkeypatch.setattr("nst.losses.crd.BLOCK_BYTES", 8 * IMAGES * 2)
    torch.testing.assert_close(value(built(), student, teacher, extra), expected)


def test_the_banks_move_towards_the_embeddings_in_training_only():
    loss = built(momentum=0.25)
    student, teacher, extra = batch()
    index, before = extra["index"], (loss.student_bank.clone(), loss.teacher_bank.clone())
    value(loss.eval(), student, teacher, extra)
    assert torch.equal(loss.student_bank, before[0])
    loss.labels.fill_(-1)
    value(loss.train(), student, teacher, extra)
    assert torch.equal(loss.labels[index], extra["labels"])  # learned as images are seen
    assert (loss.labels == -1).sum() == IMAGES - len(index)
    for bank, old, layer, x in (
        (loss.student_bank, before[0], loss.embed_student, student),
        (loss.teacher_bank, before[1], loss.embed_teacher, teacher),
    ):
        moved = 0.25 * old[index] + 0.75 * torch.stack(embeddings(layer, x))
        torch.testing.assert_close(bank[index], F.normalize(moved).detach())
        rest = [i for i in range(IMAGES) if i not in index]
        assert torch.equal(bank[rest], old[rest])


@pytest.mark.parametrize("sampling", ["classes", "images"])
def test_negatives_are_other_images_of_other_classes_each_once(sampling):
    loss, draws = built(sampling=sampling), 200
    _, _, extra = batch(1)
    own, counts = int(extra["index"]), torch.zeros(IMAGES)
    for seed in range(draws):
        (negatives,) = drawn(loss, extra | {"seed": torch.tensor(seed)})
        assert len(negatives) == 7
        counts[negatives] += 1
    allowed = [j for j in range(IMAGES) if j != own and (sampling == "images" or KNOWN[j] != KNOWN[own])]
    expected = draws * 7 / len(allowed)
    assert counts.sum() == counts[allowed].sum()
    assert (counts[allowed] - expected).abs().max() < 4.5 * math.sqrt(expected)  # binomial


def test_draws_depend_on_seed_and_image_alone():
    _, _, extra = batch(5)
    loss = built()
    first = drawn(loss, extra)
    assert drawn(loss, extra) == first
    turned = {name: tensor.flip(0) if tensor.ndim else tensor for name, tensor in extra.items()}
    assert drawn(loss, turned) == first[::-1]
    assert drawn(loss, extra | {"seed": torch.tensor(12345)}) != first
    keys = random_keys(torch.tensor(3), torch.arange(50)[:, None], 200)
    chosen = (keys.double() / 2.0**63 < 0.3).double()  # two images share as many negatives as two independent draws
    shared = (chosen @ chosen.T)[~torch.eye(50, dtype=torch.bool)] / 200
    assert abs(shared.mean() - 0.09) < 0.005
    assert abs(shared.std() - (0.09 * 0.91 / 200) ** 0.5) < 0.003
