import sys

import pytest
import torch
import torchvision
from torch import nn

import nst.models as models


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("arch", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_torchvision_parameters(arch, parameters):
    """Counts of torchvision's documentation, 1000 classes."""
    model = models.torchvision_model(arch, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("arch", "channels"), [("resnet18", 512), ("resnet50", 2048), ("wide_resnet50_2", 2048)])
def test_torchvision_resnet_taps(arch, channels, capture):
    model = models.torchvision_model(arch, num_classes=5, in_channels=1).eval()
    logits, features = capture(model, torch.empty(1, 1, 224, 224))
    assert logits.shape == (1, 5)
    assert set(features) == {"last", "last_pre_relu"} | {f"stage{k}{s}" for k in range(1, 5) for s in ("", "_pre_relu")}
    assert features["last"].shape == features["last_pre_relu"].shape == (1, channels, 7, 7)
    assert features["stage1"].shape[-1] == 56


def test_taps_are_the_two_sides_of_one_relu(capture):
    model = models.torchvision_model("resnet18", num_classes=5)
    _, features = capture(model, torch.randn(2, 3, 64, 64))
    for role in ("last", "stage1", "stage2", "stage3", "stage4"):
        torch.testing.assert_close(features[role], features[f"{role}_pre_relu"].relu(), rtol=0, atol=0)
        assert features[f"{role}_pre_relu"].min() < 0
        assert features[role]._version == 0


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("arch", ["mobilenet_v2", "vgg11_bn", "squeezenet1_1", "googlenet", "vit_b_32"])
def test_other_families_run_with_what_is_known(arch, capture):
    model = models.torchvision_model(arch, num_classes=5, in_channels=1)
    logits, features = capture(model, torch.empty(2, 1, 224, 224))  # in training mode: no auxiliary outputs either
    assert logits.shape == (2, 5)
    assert set(features) <= {"last"}
    assert not [name for name, module in model.named_modules() if getattr(module, "inplace", False)]


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1", "vgg11", "googlenet"])
@pytest.mark.parametrize("num_classes", [5, 1000])
def test_pretrained_classifier_is_replaced_where_classes_differ(arch, num_classes, monkeypatch):
    original = torchvision.models.get_model
    built: list[nn.Module] = []

    def without_download(name, weights, **options):
        assert weights == "DEFAULT"
        assert "num_classes" not in options
        if name == "googlenet":
            options["init_weights"] = False
        built.append(original(name, weights=None, **options))
        return built[0]

    def classifier(model):
        return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]

    monkeypatch.setattr(torchvision.models, "get_model", without_download)
    before = classifier(original(arch, **({"init_weights": False} if arch == "googlenet" else {})))
    model = models.torchvision_model(arch, num_classes=num_classes, pretrained=True)
    after = classifier(model)
    assert model is built[0]
    assert type(before) is type(after)
    assert after.weight.shape == (num_classes, *before.weight.shape[1:])
    assert model.eval()(torch.empty(2, 3, 224, 224)).shape == (2, num_classes)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match=r"arch='resnet81': torchvision .* nearest names: .*resnet18"):
        models.torchvision_model("resnet81", num_classes=10)
    with pytest.raises(ValueError, match=r"arch='zzzz': torchvision .* it has \d+, such as alexnet"):
        models.torchvision_model("zzzz", num_classes=10)


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    def offline(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"resnet18: torchvision's pretrained.*no network.*pretrained=false"):
        models.torchvision_model("resnet18", num_classes=10, pretrained=True)


def test_pretrained_weights_have_three_channels():
    with pytest.raises(ValueError, match=r"in_channels=1: .* 3 channels"):
        models.torchvision_model("resnet18", num_classes=10, in_channels=1, pretrained=True)


@pytest.mark.parametrize(("arch", "channels"), [("resnet18", 512), ("seresnet50", 2048), ("resnet50.a1_in1k", 2048)])
def test_timm_resnet_taps(arch, channels, capture):
    pytest.importorskip("timm")
    with torch.device("meta"):
        model = models.timm_model(arch, num_classes=5, in_channels=1).eval()
        logits, features = capture(model, torch.empty(1, 1, 224, 224))
    assert logits.shape == (1, 5)
    assert features["last"].shape == features["last_pre_relu"].shape == (1, channels, 7, 7)
    assert {f"stage{k}_pre_relu" for k in range(1, 5)} < set(features)
    assert not [name for name, module in model.named_modules() if getattr(module, "inplace", False)]


def test_timm_other_families_have_no_roles():
    pytest.importorskip("timm")
    with torch.device("meta"):
        model = models.timm_model("hrnet_w18_small", num_classes=5)  # a `layer1`, but no last stage of that name
    assert model.taps == {}


def test_timm_unknown_name_gives_the_nearest():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"arch='resnet-50': timm .* nearest names: .*resnet50"):
        models.timm_model("resnet-50", num_classes=10)


def test_timm_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'nst\[timm\]'"):
        models.timm_model("resnet18", num_classes=10)
