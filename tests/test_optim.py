"""Rates and weight decay of parts, schedules against their statements, averaged weights: evaluated and kept."""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.conftest import Compose
from torch import Tensor, nn

from nst import build
from nst.cli.train import run
from nst.loop import Training
from nst.optim import AveragedWeights, Constant, Cosine, OneCycle, Step, make_optimizer
from nst.storage.checkpoint import Checkpoints


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


def test_steps_at_fractions_of_the_run() -> None:
    schedule = Step(milestones=[0.75, 0.5], gamma=0.1)
    rates = [schedule(0.2, s, 400) for s in (0, 199, 200, 299, 300, 399)]
    assert rates == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002, 0.002])


def test_cosine_falls_from_lr_to_zero() -> None:
    schedule = Cosine()
    assert schedule(0.1, 0, 100) == pytest.approx(0.1)
    assert schedule(0.1, 50, 100) == pytest.approx(0.05)
    assert 0 < schedule(0.1, 99, 100) < 1e-4


def test_onecycle_peaks_at_the_warmup() -> None:
    schedule = OneCycle(warmup=0.2)
    rates = [schedule(0.4, s, 100) for s in range(100)]
    assert rates.index(max(rates)) == 20
    assert max(rates) == pytest.approx(0.4)
    assert all(a < b for a, b in itertools.pairwise(rates[:21]))
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert rates[-1] < 0.01


@pytest.mark.parametrize("schedule", [Step(warmup=0.1), Constant(warmup=0.1)])
def test_warmup_rises_in_front_of_any_schedule(schedule: Step | Constant) -> None:
    rates = [schedule(0.1, s, 100) for s in range(12)]
    assert rates[0] < rates[5] < rates[9] < rates[10] == rates[11] == 0.1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Step(milestones=[100]), "milestones are"),
        (lambda: Step(gamma=-1), "gamma is"),
        (lambda: Step(gamma=float("nan")), "gamma is"),
        (lambda: Cosine(warmup=1.0), "warmup is"),
        (lambda: OneCycle(warmup=float("nan")), "warmup is"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()  # type: ignore[operator]


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_the_network_runs_with_the_average_and_keeps_its_own_weights() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    average = AveragedWeights(network, 0.5)
    images, before = torch.randn(3, 1, 4, 4), weights(network)
    expected = network.eval()(images)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(1.0)
    changed = weights(network)
    with average.adopted():
        assert torch.equal(network(images), expected)
    assert all(torch.equal(value, changed[name]) for name, value in network.state_dict().items())
    average.adopt()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


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
    written = json.loads((folder / "summary.json").read_text())
    assert written["student"]["weights"] == "exponential moving average over the steps, decay 0.7"
    with safe_open(folder / "student.safetensors", framework="pt") as file:
        assert file.metadata()["ema"] == "0.7"
        assert file.metadata()["test_accuracy"] == f"{summary['last']['top1'] / 100:.4f}"
    plain = run(compose(*tiny, "loss=ce"))
    assert "weights" not in plain["student"]
    assert plain["last"] != summary["last"]


def test_heat_maps_show_it(compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights at the last drawing are those that are kept; training goes on with the network's own."""
    drawn: list[dict[str, Tensor]] = []

    def heatmaps(_images: Tensor, networks: dict[str, tuple[nn.Module, Tensor]], *_: object, **__: object) -> dict:
        drawn.append(weights(networks["student"][0]))
        return {}

    monkeypatch.setattr("nst.run.heatmaps", heatmaps)
    summary = run(compose(*tiny, "loss=ce", "trainer.ema=0.7", "trainer.heatmaps=true"))
    folder = Path(summary["folder"])
    kept, found = load_file(folder / "student.safetensors"), Checkpoints(folder).latest()
    assert len(drawn) == 2
    assert all(torch.equal(drawn[-1][name], value) for name, value in kept.items())
    assert found is not None
    assert not torch.equal(found[1]["distiller"]["student.fc.weight"], kept["fc.weight"])
