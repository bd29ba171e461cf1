import pytest
import torch
from torch import nn

import nst.models as models
from nst.models.resnet import CifarResNet, PaddedShortcut


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# He et al. (2015), table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million for 10 classes. The exact numbers are those of the
# option A networks, 432 + 32 (stem) + blocks + 650 (classifier); 8 and 14 follow from the same sum.
COUNTS = [
    ("resnet8", 75_290, None),
    ("resnet14", 172_506, None),
    ("resnet20", 269_722, "0.27"),
    ("resnet32", 464_154, "0.46"),
    ("resnet44", 658_586, "0.66"),
    ("resnet56", 853_018, "0.85"),
    ("resnet110", 1_727_962, "1.7"),
]


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("name", "parameters", "published"), COUNTS)
def test_parameters_of_the_paper(name, parameters, published):
    model = getattr(models, name)(num_classes=10)
    assert count(model) == parameters
    if published is not None:
        digits = len(published.partition(".")[2])
        assert f"{count(model) / 1e6:.{digits}f}" == published
    n = (int(name.removeprefix("resnet")) - 2) // 6
    blocks = 0
    for width, inputs in ((16, 16), (32, 16), (64, 32)):
        blocks += 9 * width * inputs + (2 * n - 1) * 9 * width * width + 2 * n * 2 * width
    assert count(model) == 432 + 32 + blocks + 650


# CRD's benchmark (Tian et al., 2020), networks of its published code, 100 classes. With projections ResNet-20 has
# 16 * 32 + 64 and 32 * 64 + 128 more than with padding.
@pytest.mark.usefixtures("meta")
def test_parameters_of_crd():
    assert count(models.resnet8x4(num_classes=100)) == 1_233_540
    assert count(models.resnet32x4(num_classes=100)) == 7_433_860
    assert count(models.resnet20(num_classes=100, shortcut="B")) == 278_324 == 275_572 + 576 + 2176


def test_padded_shortcut_is_option_a():
    x = torch.randn(2, 16, 5, 6)
    shortcut = PaddedShortcut(16, 32, stride=2)
    out = shortcut(x)
    expected = torch.zeros(2, 32, 3, 3)
    for b in range(2):
        for c in range(16):
            for i in range(3):
                for j in range(3):
                    expected[b, 8 + c, i, j] = x[b, c, 2 * i, 2 * j]
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    assert not list(shortcut.parameters())


def test_names_are_those_of_published_weights():
    conv, bn = ["weight"], ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = {f"conv1.{p}" for p in conv} | {f"bn1.{p}" for p in bn} | {"fc.weight", "fc.bias"}
    for stage in (1, 2, 3):
        for i in (0, 1):
            for k in (1, 2):
                expected |= {f"layer{stage}.{i}.conv{k}.{p}" for p in conv}
                expected |= {f"layer{stage}.{i}.bn{k}.{p}" for p in bn}
    assert set(models.resnet14().state_dict()) == expected
    projected = set(models.resnet14(shortcut="B").state_dict()) - expected
    assert projected == {
        *(f"layer{stage}.0.downsample.0.weight" for stage in (2, 3)),
        *(f"layer{stage}.0.downsample.1.{p}" for stage in (2, 3) for p in bn),
    }


def test_forward_is_the_stated_chain():
    model = models.resnet8().eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        out = torch.relu(model.bn1(model.conv1(x)))
        for stage in (model.layer1, model.layer2, model.layer3):
            block = stage[0]
            inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(out)))))
            extra = inner.shape[1] - out.shape[1]
            if extra:
                zeros = torch.zeros(2, extra // 2, *inner.shape[2:])
                out = torch.cat([zeros, out[:, :, ::2, ::2], zeros], dim=1)
            out = torch.relu(inner + out)
        expected = out.mean(dim=(2, 3)) @ model.fc.weight.T + model.fc.bias
        torch.testing.assert_close(model(x), expected)


def test_impossible_arguments_are_named():
    with pytest.raises(ValueError, match=r"depth=18: .* 6n \+ 2"):
        CifarResNet(18)
    with pytest.raises(ValueError, match="shortcut='C': use 'A'"):
        models.resnet20(shortcut="C")  # pyright: ignore[reportArgumentType]
