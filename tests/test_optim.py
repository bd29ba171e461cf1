"""Rates and weight decay of parts, schedules against their statements, averaged weights: evaluated and kept."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.conftest import Compose
from torch import nn
from torch.optim import lr_scheduler

from nst import build
from nst.cli.train import run
from nst.optim import Constant, Cosine, OneCycle, Step, make_optimizer
from nst.storage.checkpoint import Checkpoints


def test_each_parameter_has_the_rate_of_its_longest_part(compose: Compose, tiny: list[str]) -> None:
    own = ["loss=[fitnet,vid]", "optim.no_decay=[bias]", "optim.lr=0.1", "optim.weight_decay=0.01"]
    settings = build.settings(compose(*tiny, *own))
    distiller = build.networks(settings).distiller
    factors = {"layer3": 0.5, "layer3.0": 2.0, "fc.bias": 10, "loss": 0.1, "loss.vid": 3.0}
    made = build.optimization(settings) | {"lr_factors": factors}
    optimizer = make_optimizer(made["optimizer"], distiller, made["no_decay"], made["lr_factors"])
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    begins = ["student.layer3.", "student.layer3.0.", "student.fc.bias", "losses.", "losses.vid:"]
    for name, p in distiller.named_parameters():
        factor = 1.0
        for start, value in zip(begins, factors.values(), strict=True):
            factor = value if name.startswith(start) else factor
        rate, decay = groups[id(p)]["initial_lr"], groups[id(p)]["weight_decay"]
        assert (rate, decay) == (pytest.approx(0.1 * factor), 0.0 if name.endswith("bias") else 0.01), name
    assert optimizer.param_groups[0]["initial_lr"] == 0.1  # the plain ones first: their rate is the one that is logged


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ("{fcc: 10}", "optim: lr_factors: nothing that is trained is called 'fcc'; nearest: fc"),
        ("{loss.fitne: 10}", r"'loss\.fitne'; nearest: loss\.fitnet"),
        *((wrong, r"optim\.lr_factors=.*: factors above 0") for wrong in ("{fc: 0}", "{0: 2}", "3")),
    ],
)
def test_parts_that_are_not_there_are_named_before_any_work(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch, factors: str, said: str
) -> None:
    monkeypatch.setattr("nst.run.prepare_teacher", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=said):
        run(compose(*tiny, "loss=fitnet", f"optim.lr_factors={factors}"))


@pytest.mark.parametrize(
    ("schedule", "torchs"),
    [
        (Step(milestones=[0.75, 0.5], gamma=0.1), partial(lr_scheduler.MultiStepLR, milestones=[20, 30])),
        (Cosine(), partial(lr_scheduler.CosineAnnealingLR, T_max=40)),
        (OneCycle(warmup=0.0), partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=40)),
    ],
)
def test_schedules_are_torchs(schedule: Step | Cosine | OneCycle, torchs: Any) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.2)
    theirs = torchs(optimizer)
    for step in range(40):
        assert schedule(0.2, step, 40) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warmup_rises_in_front_of_any_schedule() -> None:
    for schedule in (Step(warmup=0.1), Constant(warmup=0.1), OneCycle(warmup=0.1)):
        rates = [schedule(0.1, step, 100) for step in range(11)]
        assert rates == pytest.approx([0.1 * (step + 1) / 11 for step in range(11)])


def test_it_is_evaluated_kept_and_said(compose: Compose, tiny: list[str]) -> None:
    """The file holds the average, whose accuracy the last evaluation gives."""
    summary = run(compose(*tiny, "loss=ce", "trainer.ema=0.7"))
    folder = Path(summary["folder"])
    found = Checkpoints(folder).latest()
    assert found is not None
    average, own = found[1]["ema"], found[1]["distiller"]
    kept = load_file(folder / "student.safetensors")
    assert all(torch.equal(average[name], value) for name, value in kept.items())
    assert not torch.equal(own["student.fc.weight"], kept["fc.weight"])
    with safe_open(folder / "student.safetensors", framework="pt") as file:
        assert file.metadata()["ema"] == "0.7"
        assert file.metadata()["test_accuracy"] == f"{summary['last']['top1'] / 100:.4f}"
