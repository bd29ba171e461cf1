"""MobileNetV2, the ShuffleNets and ResNet-50 for small images: each network is the stated function of its weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nst.models as models


class Reference:
    """Layers by name from a state dict, evaluated with their running statistics."""

    def __init__(self, model: nn.Module) -> None:
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    assert tensor is not None
                    nn.init.uniform_(tensor, 0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    assert tensor is not None
                    nn.init.normal_(tensor, std=0.3)
        self.state = model.double().eval().state_dict()

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)

    def norm(self, name: str, x: Tensor) -> Tensor:
        scale, shift, mean, variance = (
            self.state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel j of group g goes to place j · groups + g."""
    size = x.shape[1] // groups
    return torch.stack([x[:, g * size + j] for j in range(size) for g in range(groups)], dim=1)


def check(model: nn.Module, capture, expected: dict[str, Tensor], logits: Tensor, x: Tensor) -> None:
    with torch.no_grad():
        found, features = capture(model, x)
    torch.testing.assert_close(found, logits)
    for role, feature in expected.items():
        torch.testing.assert_close(features[role], feature)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_resnet50(capture, images):
    model = models.resnet50_cifar()
    net, expected = Reference(model), {}
    x = net.norm("bn1", net.conv("conv1", images)).relu()
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for i in range(blocks):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            out = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x)).relu()
            out = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", out, stride)).relu()
            out = net.norm(f"{name}.bn3", net.conv(f"{name}.conv3", out))
            if i == 0:
                x = net.norm(f"{name}.shortcut.1", net.conv(f"{name}.shortcut.0", x, stride))
            expected[f"stage{stage}_pre_relu"] = out + x
            expected[f"stage{stage}"] = x = (out + x).relu()
    check(model, capture, expected | {"last": x}, net.linear("linear", x), images)


def test_mobilenet_v2(capture, images):
    model = models.mobilenet_v2_half()
    net, outputs = Reference(model), []
    x = net.norm("conv1.1", net.conv("conv1.0", images, 2)).relu()
    for group, (blocks, first) in enumerate(((1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))):
        for i in range(blocks):
            name = f"blocks.{group}.{i}.conv"
            out = net.norm(f"{name}.1", net.conv(f"{name}.0", x)).relu()
            out = net.norm(f"{name}.4", net.conv(f"{name}.3", out, first if i == 0 else 1)).relu()
            out = net.norm(f"{name}.7", net.conv(f"{name}.6", out))
            x = out + x if i else out  # no first block keeps its number of channels
        outputs.append(x)
    expected = {
        "stage1": outputs[1],
        "stage2": outputs[2],
        "stage3": outputs[4],
        "stage4": outputs[6],
        "last": outputs[6],
    }
    x = net.norm("conv2.1", net.conv("conv2.0", x)).relu()
    check(model, capture, expected, net.linear("classifier.0", x), images)


def test_shufflenet_v1(capture, images):
    model = models.shufflenet_v1()
    net, expected = Reference(model), {}
    x = net.norm("bn1", net.conv("conv1", images)).relu()
    for stage, units in enumerate((4, 8, 4), 1):
        for i in range(units):
            name, stride = f"layer{stage}.{i}", 2 if i == 0 else 1
            out = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x)).relu()
            out = shuffled(out, 1 if (stage, i) == (1, 0) else 3)
            out = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", out, stride)).relu()
            out = net.norm(f"{name}.bn3", net.conv(f"{name}.conv3", out))
            out = torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], dim=1) if i == 0 else out + x
            expected[f"stage{stage}_pre_relu"] = out
            expected[f"stage{stage}"] = x = out.relu()
    check(model, capture, expected | {"last": x}, net.linear("linear", x), images)


def test_shufflenet_v2(capture, images):
    """The ReLU of a unit stands on its branches alone here, and after their concatenation there: the same function."""
    model = models.shufflenet_v2()
    net, expected = Reference(model), {}
    x = net.norm("bn1", net.conv("conv1", images)).relu()
    for stage, units in enumerate((4, 8, 4), 1):
        name = f"layer{stage}.0"
        left = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, 2))
        left = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", left)).relu()
        right = net.norm(f"{name}.bn3", net.conv(f"{name}.conv3", x)).relu()
        right = net.norm(f"{name}.bn4", net.conv(f"{name}.conv4", right, 2))
        right = net.norm(f"{name}.bn5", net.conv(f"{name}.conv5", right)).relu()
        x = shuffled(torch.cat([left, right], dim=1), 2)
        for i in range(1, units):
            name = f"layer{stage}.{i}"
            passed, out = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
            out = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", out)).relu()
            out = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", out))
            out = net.norm(f"{name}.bn3", net.conv(f"{name}.conv3", out))
            expected[f"stage{stage}_pre_relu"] = torch.cat([passed, out], dim=1)
            expected[f"stage{stage}"] = x = shuffled(torch.cat([passed, out.relu()], dim=1), 2)
    expected |= {"last": expected["stage3"], "last_pre_relu": expected["stage3_pre_relu"]}
    x = net.norm("bn2", net.conv("conv2", x)).relu()
    check(model, capture, expected, net.linear("linear", x), images)
