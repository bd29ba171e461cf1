"""The gradients of a loss's terms: of known size and direction, and the command's tables."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.conftest import Compose
from torch import Tensor, nn
from torch.testing import assert_close

from nst import build
from nst.cli.gradients import show
from nst.cli.train import run
from nst.data.batch import Batch
from nst.distiller import Distiller, Pair, Term
from nst.evaluate import compare_gradients
from nst.layers import LOGITS
from nst.losses import Shape, TransferLoss


class Linear(TransferLoss):
    """The sum of the logits times fixed factors: its gradient in the logits is the factors."""

    on_logits = True

    def __init__(self, factors: list[float], source: str) -> None:
        super().__init__()
        self.factors, self.source = torch.tensor(factors), source  # pyright: ignore[reportIncompatibleVariableOverride]

    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        return {}

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        return (student_feature * self.factors).sum(1).mean()

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        return {}


def test_strength_and_direction() -> None:
    """A term at right angles five times as strong, and one that wants the opposite; the student: two weights for one input."""
    of = [("ce", "labels", 2.0, [1.0, 0.0]), ("across", "teacher", 5.0, [0.0, 2.0])]
    of.append(("against", "teacher", 0.5, [-1.0, 0.0]))
    pair = (Pair(LOGITS, LOGITS),)
    terms = [Term(name, Linear(factors, source), weight, pair) for name, source, weight, factors in of]
    tested = Distiller(nn.Linear(1, 2, bias=False), terms, {LOGITS: (2,)}, {LOGITS: (2,)})
    zeros, targets = torch.zeros(3, dtype=torch.int64), {"across:0": {}, "against:0": {}}
    batches = [(Batch(torch.full((3, 1), value), zeros, zeros, zeros), targets) for value in (1.0, 3.0)]
    before = [p.detach().clone() for p in tested.parameters()]
    ce, across, against = compare_gradients(tested, batches)
    assert ce.relative_norm == ce.cosines["ce"] == 1.0
    assert_close((across.relative_norm, across.cosines["ce"]), (5.0, 0.0))
    assert_close((against.relative_norm, against.cosines["ce"], against.cosines["across"]), (0.25, -1.0, 0.0))
    assert across.weight == 5.0
    assert_close(across.value, float(2.0 * 2.0 * before[0][1]))  # the mean input is 2
    assert all(torch.equal(a, b) for a, b in zip(before, tested.parameters(), strict=True))
    assert all(p.grad is None for p in tested.parameters())


def test_tables_before_and_after_a_run(compose: Compose, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose(*tiny, "loss=[kd,nst_poly]")
    show(build.settings(cfg.copy()))
    assert "after training" not in capsys.readouterr().out
    run(cfg.copy())
    capsys.readouterr()
    show(build.settings(cfg))
    text = capsys.readouterr().out
    assert text.index("before training") < text.index("after training")
    assert text.count("nst_poly") >= 2
    result = json.loads(Path(text.rpartition("written: ")[2].strip().replace("\n", "")).read_text())
    assert [term["term"] for term in result["measured"]["after training"]] == ["ce", "kd", "nst_poly"]
