"""Initial weights of the networks built here. Normalisation layers keep PyTorch's own: scale 1, shift 0."""

from torch import nn


def he_normal_(model: nn.Module, zero_linear_bias: bool = True) -> None:
    """Draw convolutions from N(0, 2 / fan-out), as the published ResNets, wide ResNets and VGGs do, in place.

    Their biases become zero; linear layers keep PyTorch's draw of the weights.

    Args:
        model: the network.
        zero_linear_bias: set the biases of linear layers to zero too, instead of keeping PyTorch's draw of them.
    """
    zeroed = (nn.Conv2d, nn.Linear) if zero_linear_bias else (nn.Conv2d,)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, zeroed) and module.bias is not None:
            nn.init.zeros_(module.bias)


def xavier_gaussian_(model: nn.Module) -> None:
    """Draw convolutions and linear layers from N(0, 2 / fan-in), in place; every bias becomes zero.

    It is MXNet's Xavier (Gaussian, fan-in, magnitude 2), with which the paper's networks start.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
