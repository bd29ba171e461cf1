"""Parts of a network that are kept fixed."""

import copy

import pytest
import torch
from torch import nn

from nst.models import resnet8
from nst.models.parts import freeze


def test_frozen_parts_stay_as_they_are() -> None:
    """Whatever mode is set, and in a deep copy (of an average of the weights) too."""
    model = resnet8()
    freeze(model, ["conv1", "bn1", "layer1", "fc.bias"])
    model.train()
    model = copy.deepcopy(model).train().eval().train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(("layer2", "layer3"))} | {"fc.weight"}
    assert model.layer2.training


def test_dropout_of_a_frozen_part_is_drawn_as_before() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()), nn.Linear(3, 2))
    freeze(model, ["0"])
    model.train()
    assert [module.training for module in model[0]] == [False, True]


def test_what_cannot_be_frozen_is_said() -> None:
    with pytest.raises(ValueError, match=r"CifarResNet has no part 'layer4'; nearest: layer"):
        freeze(resnet8(), ["layer4"])
    with pytest.raises(ValueError, match="nothing of Linear is left to train"):
        freeze(nn.Linear(2, 2), ["weight", "bias"])
