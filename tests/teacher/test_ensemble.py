"""Several teachers as one: their mean, each member's layers, sizes and normalisation; live and cached alike."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Compose
from torch import nn

from nst.cli.train import run
from nst.layers import LayerHooks, feature_shapes
from nst.models import resnet8, resnet14, timm_model
from nst.models.weights import save_weights
from nst.teacher import Ensemble, Normalization

DATA = Normalization((0.3,), (0.4,))
IMAGES = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def vit(num_classes: int = 10) -> nn.Module:
    return timm_model("vit_tiny_patch16_224", num_classes, in_channels=1, image_size=32, input_size=32)


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """Files of three networks; the first one says how its images were normalised."""
    torch.manual_seed(0)
    metadata = {"mean": "0.5", "std": "0.25"}
    for name, network in (("a", resnet8(10, in_channels=1)), ("b", resnet14(10, in_channels=1)), ("v", vit())):
        save_weights(tmp_path / f"{name}.safetensors", network, metadata if name == "a" else {})
    return {name: str(tmp_path / f"{name}.safetensors") for name in "abv"}


def three(weights: dict[str, str], **average: Any) -> tuple[Ensemble, dict[str, nn.Module]]:
    """The ensemble, and its members alone with the same weights."""
    alone = {"a": resnet8(10, in_channels=1), "b": resnet14(10, in_channels=1), "v": vit()}
    members = {name: {"network": copy.deepcopy(alone[name]), "weights": weights[name]} for name in alone}
    members["b"]["input_size"] = 8
    ensemble = Ensemble(members, **average).eval()
    facts = ensemble.load(DATA)["members"]
    assert facts["a"]["input"] == "mean 0.5, std 0.25, as stored with its weights"
    assert facts["b"]["input"].startswith("mean 0.3, std 0.4, as the data")
    for name, network in alone.items():
        network.load_state_dict(load_file(weights[name]))
        network.eval()
    return ensemble, alone


def seen(name: str) -> torch.Tensor:
    """What a member is to see: its own normalisation, or its own size."""
    if name == "a":
        return (IMAGES * 0.4 + 0.3 - 0.5) / 0.25
    if name == "b":
        return nn.functional.interpolate(IMAGES, (8, 8), mode="bilinear", antialias=True)
    return IMAGES


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@torch.no_grad()
def test_its_logits_are_the_mean(weights: dict[str, str], average: str) -> None:
    ensemble, alone = three(weights, average=average)
    outputs = torch.stack([network(seen(name)) for name, network in alone.items()])
    if average == "logits":
        torch.testing.assert_close(ensemble(IMAGES), outputs.mean(0))
    else:
        torch.testing.assert_close(ensemble(IMAGES).exp(), outputs.softmax(2).mean(0))


@torch.no_grad()
def test_a_members_layer_is_that_of_the_member_alone(weights: dict[str, str]) -> None:
    """By its role or its module, tokens on the member's own grid."""
    ensemble, alone = three(weights)
    layers = {"a.last": "last", "b.layer2": "layer2", "v.blocks.3": "blocks.3", "a.last_pre_relu": "last_pre_relu"}
    shapes = feature_shapes(ensemble, layers, (1, 16, 16))
    assert shapes["v.blocks.3"] == (192, 2, 2)
    hooks = LayerHooks(ensemble, layers)
    ensemble(IMAGES)
    for layer, feature in hooks.read().items():
        name, inner = layer[0], layers[layer]
        own = LayerHooks(alone[name], [inner])
        alone[name](seen(name))
        torch.testing.assert_close(feature, own.read()[inner])
        assert feature.shape[1:] == shapes[layer]


def test_what_cannot_be_an_ensemble_is_named(weights: dict[str, str]) -> None:
    def member(**more: Any) -> dict[str, Any]:
        return {"network": resnet8(10, in_channels=1), "weights": weights["a"], **more}

    for members, message in (
        ({"a": member()}, "two or more"),
        ({"a": member(), "b.c": member()}, r"members\.b\.c: .*module name"),
        ({"a": member(), "b": {"weights": "x"}}, r"members\.b: .*missing .*'network'"),
        ({"a": member(), "b": member(mean=[0.5])}, r"members\.b: mean=\[0\.5\], std=None: both or neither"),
        ({"a": member(), "b": member(mean="a", std="b")}, r"members\.b"),
        ({"a": member(), "b": member(weights=None)}, r"members\.b: its weights are missing"),
        ({"a": member(), "b": member(weights=weights["b"])}, r"members\.b: .*another architecture"),
    ):
        with pytest.raises(ValueError, match=message):
            Ensemble(members).load(DATA)
    with pytest.raises(ValueError, match=r"different shapes, .*\(7,\).*, so no mean"):
        Ensemble({"a": member(), "b": member(network=resnet8(7, in_channels=1))})(IMAGES)


def test_a_run_compares_with_both_live_and_cached_alike(
    compose: Compose, tiny: list[str], weights: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny, "teacher=ensemble", "loss=[kd,nst_poly]"]
    words.append("trainer.batch_size=20")  # of 40 images: a ViT's matrix products round differently in other batches
    for name, network in (("a", "resnet8"), ("v", "timm")):
        words.append(f"+model@teacher.model.members.{name}.network={network}")
        words.append(f"+teacher.model.members.{name}.weights={weights[name]}")
    for key in ("arch=vit_tiny_patch16_224", "image_size=32", "input_size=32"):
        words.append(f"teacher.model.members.v.network.{key}")
    both = "[{teacher: a.last, student: last}, {teacher: v.blocks.3, student: last, weight: 0.5}]"
    live = run(compose(*words, f"loss.nst_poly.layers={both}"))
    printed = capsys.readouterr().out
    for name in ("ensemble.a", "ensemble.v", "ensemble"):
        assert f"teacher {name}: top-1" in printed
    assert set(live["teacher"]["members"]) == {"a", "v"}
    cached = run(compose(*words, f"loss.nst_poly.layers={both}", "cache.views=all", "cache.dtype=float32"))
    assert (cached["last"], cached["teacher"]) == (live["last"], live["teacher"])
    files = [load_file(Path(summary["folder"]) / "student.safetensors") for summary in (live, cached)]
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
