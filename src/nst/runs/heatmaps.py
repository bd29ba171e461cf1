"""What single neurons select: heat maps of a few channels over a few images (paper, Figure 2)."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import make_grid

from nst.taps import Taps, resolve
from nst.teacher import Normalization

SIZE = 96  # pixels of one picture


@torch.no_grad()
def heatmaps(
    images: Tensor,
    networks: Mapping[str, tuple[nn.Module, Tensor]],
    normalization: Normalization,
    neurons: int = 4,
) -> dict[str, Tensor]:
    """One grid a network: a row an image, first the image, then the maps of the most active neurons of its last stage.

    Args:
        images: `[B, C, H, W]`, normalised.
        networks: by name, each with the images in its own normalisation; those without a `last` tap are left out.
        normalization: of the images.
        neurons: how many of the channels with the largest mean activation over these images.

    Returns:
        `neurons/<name>` → `[3, H', W']` in 0…1.
    """
    mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (normalization.mean, normalization.std))
    pictures = F.interpolate((images * std + mean).clamp(0, 1), SIZE).expand(-1, 3, -1, -1).cpu()
    grids: dict[str, Tensor] = {}
    for name, (network, own) in networks.items():
        if "last" not in getattr(network, "taps", {}):
            continue
        maps = last_maps(network, own)
        chosen = maps.mean((0, 2, 3)).topk(min(neurons, maps.shape[1])).indices
        rows = [torch.cat([pictures[:, None], torch.stack([overlay(pictures, maps[:, c]) for c in chosen], 1)], 1)]
        grids[f"neurons/{name}"] = make_grid(torch.cat(rows).flatten(0, 1), nrow=len(chosen) + 1, padding=2)
    return grids


def last_maps(network: nn.Module, images: Tensor) -> Tensor:
    """Features `[B, C, H, W]` of the network's `last` tap, on the CPU, in `eval()` mode."""
    recorder, training = Taps(network, [resolve(network, "last")]), network.training
    try:
        network.eval()(images)
        (features,) = recorder.read().values()
    finally:
        recorder.remove()
        network.train(training)
    return features.float().cpu()


def overlay(pictures: Tensor, maps: Tensor) -> Tensor:
    """Pictures `[B, 3, S, S]` under the heat maps `[B, h, w]`, each scaled to its own maximum."""
    heat = F.interpolate(maps[:, None].relu(), pictures.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    heat = heat / heat.flatten(1).amax(1).clamp(min=1e-12)[:, None, None]
    colours = torch.from_numpy(np.asarray(mpl.colormaps["inferno"](heat.numpy()))[..., :3]).permute(0, 3, 1, 2)
    return (0.4 * pictures + 0.6 * colours).float()
