"""What synchronised BN replaces, and what it must not; its numbers are tested in tests/distributed."""

import pytest
import torch
from torch import nn

from nst.training.sync_bn import PortableSyncBatchNorm, sync_batch_norms

CPU = torch.device("cpu")


def test_layers_are_converted_in_place() -> None:
    """Hooks, parameters, buffers and the names of the state stay."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    seen: list[torch.Size] = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    weight, names, expected = model[1].weight, list(model.state_dict()), model.eval()(torch.ones(1, 1, 3, 3))
    sync_batch_norms(model, CPU)
    assert isinstance(model[1], PortableSyncBatchNorm)
    assert model[1].weight is weight
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(torch.ones(1, 1, 3, 3)), expected)
    assert len(seen) == 2
    sync_batch_norms(nn.Sequential(nn.BatchNorm1d(2)), torch.device("cuda"))


def test_a_layer_that_is_more_than_bn_is_refused() -> None:
    class NormAndActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match=r"sync_bn=true: layer 1 is a NormAndActivation"):
        sync_batch_norms(nn.Sequential(nn.Conv2d(1, 2, 1), NormAndActivation(2)), CPU)
