"""fp16: gradients are scaled, the scale is found and kept in checkpoints; here by torch's code for the CPU, or on a GPU where there is one."""

from functools import partial
from typing import Any

import pytest
import torch
from tests.conftest import Compose
from tests.distributed.scenarios import BATCH, IMAGES, Network, data
from torch import Tensor

from nst import build
from nst.cli.train import run
from nst.config import TrainerConfig
from nst.dist import Dist
from nst.distiller import Distiller, Pair, Term
from nst.layers import LOGITS, feature_shapes
from nst.losses import CrossEntropy
from nst.optim import Step
from nst.teacher import Teacher
from nst.training.trainer import Trainer

CPU = torch.device("cpu")


class Overflowing(CrossEntropy):
    """Its gradient overflows whatever the scale, from a step on; the value stays finite."""

    broken = False

    def forward(self, student_feature: Tensor, summary: Any) -> Tensor:
        value = super().forward(student_feature, summary)
        return value + (0 * student_feature.sum()).sqrt() if self.broken else value


def trainer(device: torch.device = CPU, loss: CrossEntropy | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    student = Network(6, True)
    terms = [Term("ce", loss or CrossEntropy(), 1.0, (Pair(LOGITS, LOGITS),))]
    distiller = Distiller(student, terms, feature_shapes(student, [LOGITS], (1, 8, 8)), {})
    made = Trainer(
        distiller, Teacher(), data().loader(BATCH, train=True, device=device),
        optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=1e-3), schedule=Step(),
        settings=TrainerConfig(epochs=20, batch_size=BATCH, channels_last=False, compile=False, **settings),
        ranks=Dist(0, 1, device), seed=0, no_decay=("norm", "bias"),
    )  # fmt: skip
    distiller.train()
    return made


def take(it: Trainer, steps: int) -> None:
    end = it.progress.step + steps
    while it.progress.step < end:
        for batch in it.loader.epoch(*divmod(it.progress.step, it.loader.steps)):
            it.step(batch)
            if it.progress.step == end:
                break


def scale(it: Trainer) -> float:
    assert it.scaler is not None
    return it.scaler.state()["scale"]


def test_gradients_have_their_own_size_when_they_are_clipped() -> None:
    fp16, fp32 = trainer(precision="fp16", clip_grad_norm=0.1), trainer(clip_grad_norm=0.1)
    for it in (fp16, fp32):
        take(it, 4)
    logged, exact = fp16.window(), fp32.window()
    assert logged["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.05)
    for name, value in fp32.distiller.state_dict().items():
        torch.testing.assert_close(fp16.distiller.state_dict()[name], value, rtol=0.05, atol=0.02)


def test_accumulated_parts_share_a_scale() -> None:
    whole, parts = trainer(precision="fp16"), trainer(precision="fp16", accumulate=2)
    for it in (whole, parts):
        take(it, 1)
    assert parts.window()["grad_norm"] == pytest.approx(whole.window()["grad_norm"], rel=0.3)  # BN sees each part alone


def test_a_step_that_overflows_lowers_the_scale_and_leaves_no_mark() -> None:
    it = trainer(precision="fp16", ema=0.9)
    assert it.scaler is not None
    assert it.average is not None
    it.scaler.load_state(it.scaler.state() | {"scale": 2.0**40})  # far beyond what fp16 holds
    before = {name: value.clone() for name, value in it.distiller.state_dict().items()}
    average = {name: value.clone() for name, value in it.average.values.items()}
    take(it, 1)
    assert scale(it) == 2.0**39
    assert all(torch.equal(value, before[name]) for name, value in it.distiller.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in it.average.values.items())
    assert it.window()["skipped"] == 1  # and no error
    it.check_finite()
    take(it, 30)
    assert it.window()["skipped"] < 31
    assert any(not torch.equal(value, before[name]) for name, value in it.distiller.state_dict().items())


def test_what_no_scale_can_mend_is_a_fault() -> None:
    loss = Overflowing()
    it = trainer(precision="fp16", loss=loss)
    take(it, 2)
    it.window()
    loss.broken = True
    take(it, 16)
    assert scale(it) == 1.0
    it.window()
    take(it, 1)
    with pytest.raises(FloatingPointError, match="step 19: the loss or its gradient is not finite"):
        it.check_finite()
    with pytest.raises(FloatingPointError, match="step 19"):
        it.window()


def test_a_run_continues_with_its_scale() -> None:
    whole, first = trainer(precision="fp16"), trainer(precision="fp16")
    for it in (whole, first):
        assert it.scaler is not None
        it.scaler.load_state(it.scaler.state() | {"scale": 2.0**30})
    take(whole, 6)
    take(first, 3)
    second = trainer(precision="fp16")
    second.load_state(first.state())
    assert scale(second) == scale(first) < 2.0**30
    take(second, 3)
    assert scale(second) == scale(whole)
    states = [it.distiller.state_dict() for it in (whole, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("key", ["trainer.precision", "teacher.precision", "teacher.train.precision"])
def test_without_a_gpu_it_is_refused_before_any_work(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(build, "dataset", lambda *_: pytest.fail("data was read"))
    with pytest.raises(ValueError, match=rf"^{key}=fp16 needs a CUDA device, this run is on the CPU; bf16 or fp32"):
        run(compose(*tiny, "loss=kd", "trainer.device=cpu", f"{key}=fp16"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    fp16, fp32 = trainer(device, precision="fp16"), trainer(device)
    for it in (fp16, fp32):
        take(it, 2 * IMAGES // BATCH)
    assert fp16.window()["loss"] == pytest.approx(fp32.window()["loss"], rel=0.05)
