"""Parameter groups: rates and weight decay of parts; exact when killed."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Compose
from torch import nn

from nst import build
from nst.cli.train import run
from nst.loop import Training
from nst.optim import make_optimizer


def rates(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, tuple[float, float]]:
    """Initial rate and weight decay of each parameter."""
    names = {id(p): name for name, p in module.named_parameters()}
    groups = optimizer.param_groups
    return {names[id(p)]: (group["initial_lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_each_parameter_has_the_rate_of_its_longest_part(compose: Compose, tiny: list[str]) -> None:
    settings = build.settings(
        compose(*tiny, "loss=[fitnet,vid]", "optim.no_decay=[bias]", "optim.lr=0.1", "optim.weight_decay=0.01")
    )
    distiller = build.networks(settings).distiller
    factors = {"layer3": 0.5, "layer3.0": 2.0, "fc.bias": 10, "loss": 0.1, "loss.vid": 3.0}
    made = build.optimization(settings) | {"lr_factors": factors}
    optimizer = make_optimizer(made["optimizer"], distiller, made["no_decay"], made["lr_factors"])
    found = rates(optimizer, distiller)
    assert found.keys() == dict(distiller.named_parameters()).keys()
    for name, (rate, decay) in found.items():
        factor = 1.0
        for start, value in (
            ("student.layer3.", 0.5), ("student.layer3.0.", 2.0), ("student.fc.bias", 10.0), ("losses.", 0.1), ("losses.vid:", 3.0)
        ):  # fmt: skip
            factor = value if name.startswith(start) else factor
        assert (rate, decay) == (pytest.approx(0.1 * factor), 0.0 if name.endswith("bias") else 0.01), name
    assert optimizer.param_groups[0]["initial_lr"] == 0.1  # the plain ones first: their rate is the one that is logged


def test_the_first_step_of_a_part_is_as_long_as_its_factor_says() -> None:
    steps: list[torch.Tensor] = []
    for factors in ({}, {"0": 4.0}):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        optimizer = make_optimizer(partial(torch.optim.SGD, lr=0.1), net, (), factors)
        net(torch.ones(1, 3)).square().sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        optimizer.step()
        steps.append(torch.cat([p.detach().flatten() for p in net.parameters()]) - before)
    torch.testing.assert_close(steps[1][:12], 4 * steps[0][:12])
    torch.testing.assert_close(steps[1][12:], steps[0][12:])


def test_rates_of_parts_are_exact_when_a_run_is_killed_and_change_its_name(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [*tiny, "loss=fitnet", "optim=adamw", "optim.lr_factors={fc: 10, layer1: 0.1, loss.fitnet: 2}"]
    saved = [*own, "trainer.checkpoint_every=1 steps"]
    whole = run(compose(*own, "outputs=" + compose().outputs + "/whole"))
    step = Training.step

    def die_at_four(self: Training, batch: Any, targets: Any) -> None:
        step(self, batch, targets)
        if self.progress.step == 4 and self.steps == 6:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", die_at_four)
        with pytest.raises(RuntimeError, match="power cut"):
            run(compose(*saved))
    continued = run(compose(*saved))
    kept = [load_file(Path(summary["folder"]) / "student.safetensors") for summary in (whole, continued)]
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())
    plain = run(compose(*tiny, "loss=fitnet", "optim=adamw"))
    assert Path(plain["folder"]).name != Path(whole["folder"]).name
    assert plain["last"] != whole["last"]


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ("{fcc: 10}", r"optim: lr_factors: nothing that is trained is called 'fcc'; nearest: fc"),
        ("{loss.fitne: 10}", r"'loss\.fitne'; nearest: loss\.fitnet"),
        ("{fc: 0}", r"optim\.lr_factors=.*: factors above 0"),
        ("{fc: ten}", r"optim\.lr_factors=.*: factors above 0"),
        ("3", r"optim\.lr_factors=3: factors above 0"),
    ],
)
@pytest.mark.parametrize("more", [[], ["dry_run=true"]])
def test_parts_that_are_not_there_are_named_before_any_work(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch, factors: str, said: str, more: list[str]
) -> None:
    monkeypatch.setattr("nst.run.prepare_teacher", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=said):
        run(compose(*tiny, "loss=fitnet", f"optim.lr_factors={factors}", *more))
