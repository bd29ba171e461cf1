"""The distiller's loss is the weighted sum it says, with gradients for the student and what its losses learn only."""

from collections.abc import Mapping

import pytest
import torch
from tests import kinds
from torch import Tensor
from torch.nn import functional as F

from nst.data.batch import Batch
from nst.distiller import Distiller, Pair, Term
from nst.layers import LOGITS, feature_shapes
from nst.losses import KD, NST, CrossEntropy, FitNet, TransferLoss
from nst.models import resnet8, resnet14, wrn16_2
from nst.teacher import LiveTeacher

IMAGE = (3, 16, 16)


def batch(n: int = 4) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(n, *IMAGE), torch.arange(n) % 10, torch.arange(n), torch.zeros(n, dtype=torch.long))


def wired(terms: list[Term], teacher_name: str = "resnet14") -> tuple[Distiller, LiveTeacher]:
    torch.manual_seed(0)
    student, teacher = resnet8(), {"resnet14": resnet14, "wrn16_2": wrn16_2}[teacher_name]()
    pairs = [p for t in terms for p in t.pairs]
    teacher_layers = [p.teacher for t in terms if t.loss.source == "teacher" for p in t.pairs]
    shapes = feature_shapes(student, [p.student for p in pairs], IMAGE)
    distiller = Distiller(student, terms, shapes, feature_shapes(teacher, teacher_layers, IMAGE))
    return distiller, LiveTeacher(teacher, distiller.target_specs)


LAST = (Pair("last", "last"),)
LOGITS_PAIR = (Pair(LOGITS, LOGITS),)


def test_the_total_is_the_weighted_sum_of_terms_and_pairs() -> None:
    nst, kd = NST(kernel="polynomial"), KD(temperature=4.0)
    pairs = (Pair("stage2", "stage2", 0.5), Pair("last", "last", 2.0))
    terms = [Term("ce", CrossEntropy(), 0.1, LOGITS_PAIR), Term("kd", kd, 16, LOGITS_PAIR), Term("nst", nst, 50, pairs)]
    distiller, live = wired(terms)
    b = batch()
    logits, values = distiller(b.images, b.labels, live(b))
    live.model(b.images)
    teacher = live.hooks.read() | {LOGITS: live.model(b.images)}
    distiller.student(b.images)
    student = distiller.hooks.read()
    by_hand = 0.5 * nst(student["stage2"], nst.target(teacher["stage2"])) + 2 * nst(
        student["last"], nst.target(teacher["last"])
    )
    torch.testing.assert_close(values["nst"], by_hand)
    torch.testing.assert_close(values["ce"], F.cross_entropy(logits, b.labels))
    total = 0.1 * values["ce"] + 16 * values["kd"] + 50 * by_hand
    torch.testing.assert_close(distiller.total(values), total)


def two_stages(loss: TransferLoss) -> Term:
    return Term("own", loss, 1.0, (Pair("stage2", "stage2"), Pair("last", "last")))


@pytest.mark.parametrize(
    "kind", [kinds.Learned, kinds.Relational, kinds.Remembering, kinds.Ramped, kinds.SeveralLayers]
)
def test_a_loss_of_each_kind_is_trained(kind: type[TransferLoss]) -> None:
    """Its value falls, and its parameters, one set a pair of layers, change with the student's."""
    distiller, live = wired([two_stages(kind())])
    b = batch()
    for loss in distiller.losses.values():
        loss.init_memory(len(b.labels))
    context = {
        "index": b.indices, "epoch": torch.ones(()), "progress": torch.ones(()),
        "seed": torch.zeros((), dtype=torch.int64),
    }  # fmt: skip
    before = {name: p.detach().clone() for name, p in distiller.named_parameters()}
    optimizer = torch.optim.Adam(distiller.parameters(), lr=3e-3)
    targets, seen = live(b), []
    for _ in range(15):
        _, values = distiller(b.images, b.labels, targets, context)
        optimizer.zero_grad()
        distiller.total(values).backward()
        optimizer.step()
        seen.append(values["own"].item())
    assert seen[-1] < 0.9 * seen[0]
    learned = [name for name in before if name.startswith("losses.")]
    assert {name.split(".")[1] for name in learned} <= {"own:0", "own:1"}
    assert all((before[name] != p).any() for name, p in distiller.named_parameters() if name in learned)
    expected = {kinds.Learned: 4, kinds.Remembering: 8, kinds.SeveralLayers: 2}
    assert len(learned) == expected.get(kind, 0)


def test_a_loss_that_gives_more_than_one_number_is_named() -> None:
    class Rows(kinds.OfFeature):
        def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
            return student_feature.float().mean((1, 2, 3))

    distiller, live = wired([Term("rows", Rows(), 1.0, LAST)])
    b = batch()
    with pytest.raises(ValueError, match=r"loss\.rows: its forward gives shape \(\d+,\)"):
        distiller(b.images, b.labels, live(b))


def test_a_term_that_cannot_reach_the_student_is_refused() -> None:
    distiller, live = wired([Term("ce", CrossEntropy(), 1.0, LOGITS_PAIR), Term("fitnet", FitNet(), 1.0, LAST)])
    b, student = batch(), distiller.student
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.startswith("fc"))
    with pytest.raises(ValueError, match=r"loss\.fitnet: no gradient flows from the student's last"):
        distiller(b.images, b.labels, live(b))
    with torch.no_grad():
        distiller(b.images, b.labels, live(b))
    student.get_submodule("layer3").requires_grad_()
    distiller(b.images, b.labels, live(b))
