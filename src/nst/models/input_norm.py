"""Normalisation of raw pixels inside a network."""

from torch import nn


def input_norm(channels: int, input_bn: bool) -> nn.Module:
    """Batch normalisation of the images with its scale fixed at 1 (the paper's ImageNet networks), or nothing.

    Args:
        channels: channels of the images.
        input_bn: whether to normalise. The shift is learnt, the scale is not (`requires_grad` is off).
    """
    if not input_bn:
        return nn.Identity()
    bn = nn.BatchNorm2d(channels)
    bn.weight.requires_grad_(False)
    return bn
