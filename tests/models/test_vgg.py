import pytest
from torch import nn

import nst.models as models


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# CRD's benchmark (Tian et al., 2020), networks of its published code, 100 classes: 3x3 convolutions with bias, each
# normalised, widths 64, 128, 256, 512, 512, and one linear layer.
@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("name", "parameters", "repeats"), [("vgg8", 3_965_028, 1), ("vgg13", 9_462_180, 2)])
def test_parameters(name, parameters, repeats):
    assert count(getattr(models, name)(num_classes=100)) == parameters
    total, inputs = 512 * 100 + 100, 3
    for width in (64, 128, 256, 512, 512):
        for _ in range(repeats):
            total += 9 * inputs * width + width + 2 * width
            inputs = width
    assert total == parameters


def test_names_are_those_of_crd():
    names = set(models.vgg13().state_dict())
    expected = {"block0.0.weight", "block0.0.bias", "block0.1.running_var", "block4.3.weight", "block4.4.bias"}
    assert expected | {"classifier.weight"} < names
    assert "block4.5.weight" not in names
