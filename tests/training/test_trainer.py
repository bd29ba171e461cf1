"""One step: what it counts, how it clips, and that it never makes the host wait for the device."""

from functools import partial
from typing import Any

import pytest
import torch
from tests.training.test_compiled import BATCH, Net, loader
from torch.utils._python_dispatch import TorchDispatchMode

from nst.config import TrainerConfig
from nst.dist import Dist
from nst.distiller import Distiller, Pair, Term
from nst.layers import LOGITS, feature_shapes
from nst.losses import NST, CrossEntropy
from nst.optim import Constant
from nst.teacher import LiveTeacher
from nst.training.trainer import Trainer

WAITS = {"aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}
"""What waits on a GPU: a tensor made from Python's numbers, a tensor's value in Python, a size that depends on values."""


def trainer(device: str = "cpu", **settings: Any) -> Trainer:
    torch.manual_seed(0)
    student = Net()
    terms = [
        Term("ce", CrossEntropy(), 1.0, (Pair(LOGITS, LOGITS),)),
        Term("nst", NST(), 50.0, (Pair("last", "last"),)),
    ]
    shapes = feature_shapes(student, ["last", LOGITS], (1, 4, 4))
    distiller = Distiller(student, terms, shapes, shapes)
    teacher = LiveTeacher(Net().to(device), distiller.requests)
    settings = {"epochs": 2, "batch_size": BATCH, "compile": False, **settings}
    return Trainer(
        distiller, teacher, loader(), optimizer=partial(torch.optim.SGD, lr=0.1), schedule=Constant(),
        settings=TrainerConfig(**settings), ranks=Dist(0, 1, torch.device(device)), seed=0,
    )  # fmt: skip


class Calls(TorchDispatchMode):
    """Collects the names of the operators called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, {"skip_nonfinite": True, "clip_grad_norm": 0.1, "accumulate": 2, "ema": 0.9}])
def test_no_operator_of_a_step_waits(settings: dict[str, Any]) -> None:
    it = trainer(**settings)
    batch = next(iter(it.loader.epoch(0)))
    with Calls() as calls:
        it.step(batch)
    assert "aten::_fused_sgd_" in calls.names
    assert not calls.names & WAITS


def test_gradients_are_clipped_only_where_that_is_asked_for() -> None:
    """A step of plain SGD moves the weights by the learning rate times the gradient."""
    moved, logged = {}, {}
    for limit in (None, 0.1, 1e6):
        it = trainer(clip_grad_norm=limit)
        before = [p.detach().clone() for p in it.parameters]
        it.step(next(iter(it.loader.epoch(0))))
        window = it.window()
        moves = [(old - p.detach()).flatten() for p, old in zip(it.parameters, before, strict=True)]
        moved[limit], logged[limit] = float(torch.cat(moves).norm()) / window["lr"], window["grad_norm"]
    assert logged[None] == logged[0.1] == logged[1e6] > 0.2
    assert moved[None] == moved[1e6] == pytest.approx(logged[None], rel=1e-4)
    assert moved[0.1] == pytest.approx(0.1, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_never_waits_for_the_gpu() -> None:
    it = trainer("cuda", skip_nonfinite=True, clip_grad_norm=0.1)
    batches = [type(batch)(*(values.cuda() for values in batch)) for batch in it.loader.epoch(0)]
    it.step(batches[0])  # libraries start
    torch.cuda.set_sync_debug_mode("error")
    try:
        it.step(batches[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
