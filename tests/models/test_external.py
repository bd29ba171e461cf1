import copy
import sys

import pytest
import torch
import torchvision
from torch import nn

import nst.models as models
from nst.layers import LayerHooks, feature_shapes
from nst.models import external
from nst.models.named_layers import torchvision_layers


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("arch", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_torchvision_parameters(arch, parameters):
    """Counts of torchvision's documentation, 1000 classes."""
    model = models.torchvision_model(arch, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("arch", "channels"), [("resnet18", 512), ("resnet50", 2048), ("wide_resnet50_2", 2048)])
def test_torchvision_resnet_layers(arch, channels, capture):
    model = models.torchvision_model(arch, num_classes=5, in_channels=1).eval()
    logits, features = capture(model, torch.empty(1, 1, 224, 224))
    assert logits.shape == (1, 5)
    stages = ["last", *(f"stage{k}" for k in range(1, 5))]
    assert set(features) == {"pooled"} | {f"{stage}{s}" for stage in stages for s in ("", "_pre_relu", "_out")}
    assert features["pooled"].shape == (1, channels)
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
def test_other_families_run(arch, capture):
    model = models.torchvision_model(arch, num_classes=5, in_channels=1)
    logits, features = capture(model, torch.empty(2, 1, 224, 224))  # in training mode: no auxiliary outputs either
    assert logits.shape == (2, 5)
    assert "last" in features
    assert not [name for name, module in model.named_modules() if getattr(module, "inplace", False)]


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(
    "arch",
    ["convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "maxvit_t", "mnasnet0_5", "mobilenet_v2",
     "mobilenet_v3_small", "swin_t", "swin_v2_t", "vgg11_bn"],
)  # fmt: skip
def test_torchvision_stages(arch):
    """A quarter of the image on, each stage half as large."""
    model = models.torchvision_model(arch, num_classes=5)
    shapes = feature_shapes(model, model.named_layers, (3, 224, 224))
    assert [shapes[f"stage{k}"][1:] for k in range(1, 5)] == [(n, n) for n in (56, 28, 14, 7)]
    assert shapes["last"] == shapes["stage4"]
    assert all(shape[0] not in (7, 14, 28, 56) for shape in shapes.values())
    assert len(shapes["pooled"]) == 1


def test_torchvision_regnet_has_both_sides_of_its_relus():
    model = models.torchvision_model("regnet_y_400mf", num_classes=5)
    features = looked_at(model, torch.randn(1, 3, 64, 64))
    assert {f"stage{k}" for k in range(1, 5)} < {*features}
    for role in ("stage1", "stage2", "stage3", "stage4", "last"):
        assert torch.equal(features[f"{role}_pre_relu"].relu(), features[role])


def test_torchvision_vit_and_swin_yield_maps():
    images = torch.randn(2, 3, 64, 64)
    small = torchvision.models.VisionTransformer(64, 32, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48)
    vit = external._prepare(small, torchvision_layers(small), None).eval()
    tokens = vit.encoder.layers[0](_embedded(vit, images))  # [B, 1 + 2 * 2, C]
    features = looked_at(vit, images)
    assert list(features) == ["block1", "block2", "last", "last_out", "pooled"]
    torch.testing.assert_close(features["block1"], tokens[:, 1:].transpose(1, 2).reshape(2, 24, 2, 2))
    small = torchvision.models.SwinTransformer([4, 4], 24, [1, 1, 1, 1], [1, 1, 1, 1], [7, 7])
    swin = external._prepare(small, torchvision_layers(small), None).eval()
    torch.testing.assert_close(looked_at(swin, images)["stage1"], swin.features[:2](images).permute(0, 3, 1, 2))


def _embedded(vit, images):
    tokens = vit._process_input(images)
    return torch.cat([vit.class_token.expand(2, -1, -1), tokens], dim=1) + vit.encoder.pos_embedding


def looked_at(model, images):
    layers = LayerHooks(model, model.named_layers)
    with torch.no_grad():
        model(images)
    layers.remove()
    return layers.read()


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
    assert model.input_format.mean == (0.485, 0.456, 0.406)
    assert (model.input_format.size, model.input_format.interpolation) == (224, "bilinear")
    assert "_Weights.IMAGENET1K_V1" in model.input_format.source
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
def test_timm_resnet_layers(arch, channels, capture):
    pytest.importorskip("timm")
    with torch.device("meta"):
        model = models.timm_model(arch, num_classes=5, in_channels=1).eval()
        logits, features = capture(model, torch.empty(1, 1, 224, 224))
    assert logits.shape == (1, 5)
    assert features["last"].shape == features["last_pre_relu"].shape == (1, channels, 7, 7)
    assert {f"stage{k}_pre_relu" for k in range(1, 5)} < set(features)
    assert not [name for name, module in model.named_modules() if getattr(module, "inplace", False)]


def test_timm_networks_that_join_maps_of_all_sizes_have_no_stages():
    pytest.importorskip("timm")
    with torch.device("meta"):
        assert models.timm_model("crossvit_tiny_240", num_classes=5).named_layers == {}
        assert models.timm_model("coat_tiny", num_classes=5).named_layers == {"pooled": "head:input"}


def test_timm_unknown_name_gives_the_nearest():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"arch='resnet-50': timm .* nearest names: .*resnet50"):
        models.timm_model("resnet-50", num_classes=10)


def test_timm_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'nst\[timm\]'"):
        models.timm_model("resnet18", num_classes=10)


@pytest.mark.parametrize("make", [models.timm_model, models.torchvision_model])
def test_an_input_size_resizes_the_images_for_this_network(make):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    plain = make("resnet18", 5).eval()
    resizing = make("resnet18", 5, image_size=64, input_size=96).eval()
    assert list(resizing.state_dict()) == list(plain.state_dict())
    assert resizing.named_layers == plain.named_layers
    resizing.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    large = nn.functional.interpolate(images, 96, mode="bilinear", antialias=True)
    assert torch.equal(resizing(images), plain(large))
    assert torch.equal(resizing(large), plain(large))
    assert torch.equal(copy.deepcopy(resizing)(images), plain(large))
    assert feature_shapes(resizing, ["last"], (3, 64, 64))["last"] == (512, 3, 3)


@pytest.mark.parametrize("keys", [{"image_size": 0}, {"input_size": 224.0}, {"image_size": 32, "input_size": True}])
def test_sizes_are_whole_numbers(keys):
    with pytest.raises(ValueError, match=r"_size=.*: a positive whole number of pixels"):
        models.torchvision_model("resnet18", 5, **keys)


def test_a_vit_is_built_for_the_size_of_the_images():
    pytest.importorskip("timm")
    small = models.timm_model("vit_tiny_patch16_224", 5, image_size=48, arguments={"depth": 1})
    assert small(torch.randn(1, 3, 48, 48)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"images of 40×40 .* 16×16 patches; input_size=32 or 48"):
        models.timm_model("vit_tiny_patch16_224", 5, image_size=40)
    with pytest.raises(ValueError, match=r"vit_b_32 for images of 40×40"):
        models.torchvision_model("vit_b_32", 5, image_size=40)
    with pytest.raises(ValueError, match=r"VisionTransformer cannot take images of \(3, 64, 64\).*input_size=224"):
        feature_shapes(small, ["last"], (3, 64, 64))


def test_pretrained_torchvision_vits_keep_their_size():
    with pytest.raises(ValueError, match=r"vit_b_16: .* 224×224, not 160×160; input_size=224"):
        models.torchvision_model("vit_b_16", 1000, pretrained=True, image_size=160)


def test_constructor_arguments():
    pytest.importorskip("timm")
    model = models.timm_model("vit_tiny_patch16_224", 5, arguments={"depth": 2, "drop_path_rate": 0.5})
    assert model.blocks[1].drop_path1.drop_prob == 0.5
    assert models.timm_model("test_byobnet", 5, arguments={"act_layer": "silu"}).named_layers  # a field of its `cfg`
    deep = models.torchvision_model("convnext_tiny", 5, arguments={"stochastic_depth_prob": 0.3})
    assert deep.features[7][-1].stochastic_depth.p == 0.3


@pytest.mark.parametrize(
    ("arch", "name", "message"),
    [
        (
            "vit_tiny_patch16_224",
            "drop_path_rte",
            r"cannot build arch=vit_tiny.* with arguments .*drop_path_rte",
        ),
        ("deit_tiny_distilled_patch16_224", "dept", "unexpected keyword argument 'dept'"),
        ("vit_tiny_patch16_224", "img_size", "use the key input_size"),
        ("resnet18", "layers", r"cannot build arch=resnet18 .*layers"),
    ],
)
def test_wrong_arguments_are_named(arch, name, message):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        models.timm_model(arch, 5, arguments={name: 1})


def test_timm_weights_say_which_images_they_are_made_for(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def without_download(name, **options):
        return create(name, **{**options, "pretrained": False})

    monkeypatch.setattr(timm, "create_model", without_download)
    model = models.timm_model("vit_tiny_patch16_224", 5, pretrained=True, arguments={"depth": 1})
    assert model.input_format == external.InputFormat(
        (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224, "bicubic", "timm's vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no network"), "arch=resnet18: .*could not be downloaded.*no network.*pretrained=false"),
        (RuntimeError("size mismatch for pos_embed"), "do not fit arch=resnet18.*input_size"),
    ],
)
def test_timm_weights_that_cannot_be_had(error, message, monkeypatch):
    timm = pytest.importorskip("timm")

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=message):
        models.timm_model("resnet18", 5, pretrained=True)
