"""Several teachers as one: their mean, each member's layers, sizes and normalisation; live and cached alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Compose
from tests.models.conftest import capture
from torch import nn

from nst.cli.train import run
from nst.layers import feature_shapes
from nst.models import resnet8, resnet14, timm_model
from nst.models.weights import save_weights
from nst.teacher import Ensemble, Normalization

DATA = Normalization((0.3,), (0.4,))
IMAGES = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
VIT = {"in_channels": 1, "image_size": 32, "input_size": 32}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "a": lambda: resnet8(10, in_channels=1),
    "b": lambda: resnet14(10, in_channels=1),
    "v": lambda: timm_model("vit_tiny_patch16_224", 10, **VIT),
}


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, nn.Module]:
    """Three networks, each in a file of its name; the first one's says how its images were normalised."""
    torch.manual_seed(0)
    networks = {name: make().eval() for name, make in NETWORKS.items()}
    for name, network in networks.items():
        save_weights(tmp_path / name, network, {"mean": "0.5", "std": "0.25"} if name == "a" else {})
    return networks


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@torch.no_grad()
def test_its_logits_are_the_mean_and_a_members_layer_is_that_of_the_member_alone(
    alone: dict[str, nn.Module], tmp_path: Path, average: str
) -> None:
    """Layers by role or module, tokens on the member's own grid."""
    members = {name: {"network": make(), "weights": str(tmp_path / name)} for name, make in NETWORKS.items()}
    members["b"]["input_size"] = 8
    ensemble = Ensemble(members, average=average).eval()
    facts = ensemble.load(DATA)["members"]
    assert facts["a"]["input"].startswith("mean 0.5, std 0.25, as stored")
    assert facts["b"]["input"].startswith("mean 0.3, std 0.4, as the data")

    layers = {"a.last": "last", "b.layer2": "layer2", "v.blocks.3": "blocks.3", "a.last_pre_relu": "last_pre_relu"}
    shapes = feature_shapes(ensemble, layers, (1, 16, 16))
    assert shapes["v.blocks.3"] == (192, 2, 2)
    logits, features = capture(ensemble, IMAGES, layers)
    small = nn.functional.interpolate(IMAGES, (8, 8), mode="bilinear", antialias=True)
    seen = {"a": (IMAGES * 0.4 + 0.3 - 0.5) / 0.25, "b": small, "v": IMAGES}  # its own normalisation, its own size
    outputs = torch.stack([network(seen[name]) for name, network in alone.items()])
    mean = outputs.mean(0) if average == "logits" else outputs.softmax(2).mean(0)
    torch.testing.assert_close(logits if average == "logits" else logits.exp(), mean)
    for layer, feature in features.items():
        name, inner = layer[0], layers[layer]
        torch.testing.assert_close(feature, capture(alone[name], seen[name], [inner])[1][inner])
        assert feature.shape[1:] == shapes[layer]


@pytest.mark.usefixtures("alone")
def test_what_cannot_be_an_ensemble_is_named(tmp_path: Path) -> None:
    def member(**more: Any) -> dict[str, Any]:
        return {"network": NETWORKS["a"](), "weights": str(tmp_path / "a"), **more}

    for members, message in (
        ({"a": member()}, "two or more"),
        ({"a": member(), "b.c": member()}, r"members\.b\.c: "),
        ({"a": member(), "b": {"weights": "x"}}, r"members\.b: .*'network'"),
        ({"a": member(), "b": member(mean=[0.5])}, r"members\.b: mean=\[0\.5\], std=None"),
        ({"a": member(), "b": member(mean="a", std="b")}, r"members\.b"),
        ({"a": member(), "b": member(weights=None)}, r"members\.b: its weights are missing"),
        ({"a": member(), "b": member(weights=str(tmp_path / "b"))}, r"members\.b: .*another architecture"),
    ):
        with pytest.raises(ValueError, match=message):
            Ensemble(members).load(DATA)
    with pytest.raises(ValueError, match=r"\(7,\)"):
        Ensemble({"a": member(), "b": member(network=resnet8(7, in_channels=1))})(IMAGES)


@pytest.mark.usefixtures("alone")
def test_a_run_compares_with_both_live_and_cached_alike(
    compose: Compose, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny, "teacher=ensemble", "loss=[kd,nst_poly]"]
    words.append("trainer.batch_size=20")  # of 40 images: a ViT's matrix products round differently in other batches
    for name, network in (("a", "resnet8"), ("v", "timm")):
        words.append(f"+model@teacher.model.members.{name}.network={network}")
        words.append(f"+teacher.model.members.{name}.weights={tmp_path}/{name}")
    for key in ("arch=vit_tiny_patch16_224", "image_size=32", "input_size=32"):
        words.append(f"teacher.model.members.v.network.{key}")
    both = "[{teacher: a.last, student: last}, {teacher: v.blocks.3, student: last, weight: 0.5}]"
    live = run(compose(*words, f"loss.nst_poly.layers={both}"))
    printed = capsys.readouterr().out
    assert all(f"teacher {name}: top-1" in printed for name in ("ensemble.a", "ensemble.v", "ensemble"))
    assert set(live["teacher"]["members"]) == {"a", "v"}
    cached = run(compose(*words, f"loss.nst_poly.layers={both}", "cache.views=all", "cache.dtype=float32"))
    assert (cached["last"], cached["teacher"]) == (live["last"], live["teacher"])
    files = [load_file(Path(summary["folder"]) / "student.safetensors") for summary in (live, cached)]
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
