"""The averaged weights: evaluated and kept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.conftest import Compose
from torch import Tensor, nn

from nst.cli.train import run
from nst.optim import AveragedWeights
from nst.storage.checkpoint import Checkpoints


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


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5])
def test_a_decay_outside_its_range_is_refused(compose: Compose, tiny: list[str], decay: float) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.ema={decay}.*: a number above 0 and below 1 is needed"):
        run(compose(*tiny, "loss=ce", f"trainer.ema={decay}"))
