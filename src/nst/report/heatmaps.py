"""Heat maps of a few channels on a few images: what single neurons respond to (paper, Figure 2)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from nst.layers import LayerHooks, resolve
from nst.teacher import Normalization

SIZE, GAP = 96, 2  # pixels of one picture and between pictures
LEFT, TOP, BOTTOM = 112, 84, 44  # pixels for classes, for title and channels, for the colour scale
NEURONS = 4  # channels of a picture
LONGEST = 18  # characters of a class name
COLOURS = "000004 160b39 420a68 6a176e 932667 bc3754 dd513a f37819 fca50a f6d746 fcffa4"  # "inferno", in tenths


@torch.no_grad()
def heatmaps(
    images: Tensor, networks: Mapping[str, nn.Module], normalization: Normalization, labels: Sequence[str]
) -> dict[str, Image.Image]:
    """One picture of each network, by its name: a row an image, then a few channels of the last stage.

    For the reference (the network called "teacher", else the first) these are the channels with the largest mean activation
    over the images; for the others the channels most similar to each of the reference's, so that columns correspond. The colours
    of a channel are scaled to its maximum over the images.

    Args:
        images: `[B, C, H, W]`, normalised by `normalization`, of the classes `labels`.
        networks: by name; those without a `last` layer are left out.
    """
    mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (normalization.mean, normalization.std))
    pictures = F.interpolate((images * std + mean).clamp(0, 1), SIZE).expand(-1, 3, -1, -1).cpu()
    named = {name: network for name, network in networks.items() if "last" in getattr(network, "named_layers", {})}
    maps = {name: features(network, images, "last") for name, network in named.items()}
    if not maps:
        return {}
    reference = "teacher" if "teacher" in maps else next(iter(maps))
    activity = maps[reference].mean((0, 2, 3))
    chosen = activity.topk(min(NEURONS, len(activity))).indices.tolist()
    found, rows, step = {}, len(images), SIZE + GAP
    font, below = ImageFont.load_default(11), TOP + rows * step
    for name, of_network in maps.items():
        channels, captions = chosen, [""] * len(chosen)
        if name != reference:
            channels, cosines = nearest(of_network, maps[reference][:, chosen])
            known = zip(chosen, cosines, strict=True)
            captions = [f"\nfor {shortened(reference)} {theirs}\ncosine {cosine:.2f}" for theirs, cosine in known]
        columns = {"image": pictures}
        for channel, caption in zip(channels, captions, strict=True):
            heat = F.interpolate(of_network[:, [channel]].relu(), SIZE, mode="bilinear", align_corners=False)[:, 0]
            over = coloured(heat / heat.max().clamp(min=1e-12)).transpose(0, 1)
            caption = f"channel {channel}\nmax. {of_network[:, channel].max():.3g}{caption}"
            columns[caption] = 0.4 * pictures + 0.6 * over
        canvas = Image.new("RGB", (LEFT + len(columns) * step, below + BOTTOM), "white")
        draw = ImageDraw.Draw(canvas)
        title = f"{name}: layer {resolve(named[name], 'last')}, {len(chosen)} of {of_network.shape[1]} channels"
        draw.text((6, 12), title, "black", ImageFont.load_default(13), "lm")
        for row in range(rows):
            draw.text((LEFT - 6, TOP + row * step + SIZE / 2), shortened(labels[row]), "black", font, "rm")
        for column, (caption, shown) in enumerate(columns.items()):
            draw.text((LEFT + column * step + SIZE / 2, TOP - 4), caption, "black", font, "md", align="center")
            for row, picture in enumerate(shown):
                canvas.paste(_image(picture), (LEFT + column * step, TOP + row * step))
        canvas.paste(_image(coloured(torch.linspace(0, 1, 144).expand(8, -1))), (LEFT + step, below + 8))
        draw.text((LEFT + step, below + 24), "0", "black", font, "lm")
        draw.text((LEFT + step + 144, below + 24), "channel's max.", "black", font, "mm")
        found[name] = canvas
    return found


def features(network: nn.Module, images: Tensor, layer: str) -> Tensor:
    """Features `[N, C, H, W]` of one of a network's layers, on the CPU, in `eval()` mode; the network's mode is restored."""
    name = resolve(network, layer)
    hooks, training, found = LayerHooks(network, [name]), network.training, []
    try:
        for part in images.split(64):
            network.eval()(part)
            found.append(hooks.read()[name].float().cpu())
    finally:
        hooks.remove()
        network.train(training)
    return torch.cat(found)


def nearest(maps: Tensor, reference: Tensor) -> tuple[list[int], list[float]]:
    """Of `maps` `[B, C, h, w]` the channel most similar to each of `reference` `[B, n, H, W]`, and the cosines of their maps.

    Maps over all images count as one vector; maps of another size are resized to the reference's.
    """
    if maps.shape[2:] != reference.shape[2:]:
        maps = F.interpolate(maps, reference.shape[2:], mode="bilinear", align_corners=False)
    ours, theirs = (F.normalize(side.transpose(0, 1).flatten(1), dim=1) for side in (maps, reference))
    cosines, indices = (theirs @ ours.T).max(dim=1)
    return indices.tolist(), cosines.tolist()


def _image(picture: Tensor) -> Image.Image:
    """Of `[3, H, W]` in 0…1."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def shortened(text: str) -> str:
    """A class name that fits, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def coloured(heat: Tensor) -> Tensor:
    """Values `[…]` in 0…1 as colours `[3, …]` in 0…1."""
    parts = np.array([[*bytes.fromhex(colour)] for colour in COLOURS.split()]).T / 255
    places = np.linspace(0, 1, 11)
    return torch.from_numpy(np.stack([np.interp(heat.numpy(), places, part) for part in parts])).float()
