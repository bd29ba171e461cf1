"""Heat maps of a few channels on a few images: what single neurons respond to (paper, Figure 2)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from nst.layers import LayerHooks, resolve
from nst.teacher import Normalization

SIZE, GAP = 96, 2  # pixels of one picture and between pictures
LEFT, TOP, BOTTOM = 112, 84, 44  # pixels for classes, for title and channels, for the colour scale
LONGEST = 18  # characters of a class name
COLOURS = "inferno"


@dataclass(frozen=True)
class Channels:
    """Some channels of one network's last stage."""

    layer: str
    maps: Tensor  # [B, C, h, w], all of the layer, on the CPU
    chosen: list[int]
    cosines: list[float] | None = None  # to the reference's channels, if chosen by similarity
    reference: tuple[str, list[int]] | None = None  # its name and channels


@torch.no_grad()
def heatmaps(
    images: Tensor,
    networks: Mapping[str, tuple[nn.Module, Tensor]],
    normalization: Normalization,
    neurons: int = 4,
    labels: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """One picture per network, one row per image: the image, then the responses of some channels of the last stage.

    For the reference (the network called "teacher", else the first) these are the channels with the largest mean activation
    over the images; for the others the channels most similar to each of the reference's, so that columns correspond. The colours
    of a channel are scaled to its maximum over the images.

    Args:
        images: `[B, C, H, W]`, normalised.
        networks: by name, each with the images in its own normalisation; those without a `last` layer are left out.
        normalization: of the images.
        neurons: how many channels.
        labels: the images' classes; None if unknown.

    Returns:
        `neurons/<name>` → `[3, H', W']` in 0…1.
    """
    mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (normalization.mean, normalization.std))
    pictures = F.interpolate((images * std + mean).clamp(0, 1), SIZE).expand(-1, 3, -1, -1).cpu()
    named = {name: entry for name, entry in networks.items() if "last" in getattr(entry[0], "named_layers", {})}
    maps = {name: last_maps(network, inputs) for name, (network, inputs) in named.items()}
    figures = {
        name: drawing(name, pictures, channels, labels) for name, channels in choose(named, maps, neurons).items()
    }
    return {f"neurons/{name}": pixels(figure) for name, figure in figures.items()}


def choose(
    networks: Mapping[str, tuple[nn.Module, Tensor]], maps: Mapping[str, Tensor], neurons: int
) -> dict[str, Channels]:
    """The channels to show of each network: the reference's most active ones, and the most similar ones of the others."""
    if not maps:
        return {}
    reference = "teacher" if "teacher" in maps else next(iter(maps))
    reference_maps = maps[reference]
    chosen = reference_maps.mean((0, 2, 3)).topk(min(neurons, reference_maps.shape[1])).indices
    result = {}
    for name, network_maps in maps.items():
        layer = resolve(networks[name][0], "last")
        if name == reference:
            result[name] = Channels(layer, network_maps, chosen.tolist())
        else:
            indices, cosines = nearest(network_maps, reference_maps[:, chosen])
            result[name] = Channels(layer, network_maps, indices, cosines, (reference, chosen.tolist()))
    return result


def nearest(maps: Tensor, reference: Tensor) -> tuple[list[int], list[float]]:
    """Of `maps` `[B, C, h, w]` the channel most similar to each of `reference` `[B, n, H, W]`, and the cosines of their maps.

    Maps over all images count as one vector; maps of another size are resized to the reference's.
    """
    if maps.shape[2:] != reference.shape[2:]:
        maps = F.interpolate(maps, reference.shape[2:], mode="bilinear", align_corners=False)
    ours, theirs = (F.normalize(side.transpose(0, 1).flatten(1), dim=1) for side in (maps, reference))
    cosines, indices = (theirs @ ours.T).max(dim=1)
    return indices.tolist(), cosines.tolist()


def last_maps(network: nn.Module, images: Tensor) -> Tensor:
    """Features `[B, C, H, W]` of the network's `last` layer, on the CPU, in `eval()` mode."""
    recorder, training = LayerHooks(network, [resolve(network, "last")]), network.training
    try:
        network.eval()(images)
        (features,) = recorder.read().values()
    finally:
        recorder.remove()
        network.train(training)
    return features.float().cpu()


def drawing(name: str, pictures: Tensor, channels: Channels, labels: Sequence[str] | None) -> Figure:
    """Pictures `[B, 3, S, S]` and the heat maps over them, with captions."""
    columns, rows = len(channels.chosen) + 1, len(pictures)
    width, height = LEFT + columns * (SIZE + GAP), TOP + rows * (SIZE + GAP) + BOTTOM
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))  # data coordinates are pixels
    axes.axis("off")

    def write(x: float, y: float, text: str, size: float = 7.5, align: str = "center") -> None:
        axes.text(x, y, text, fontsize=size, ha=align, va="center", parse_math=False)  # a class may be called $5

    def show(picture: Tensor, left: float, top: float) -> None:
        axes.imshow(picture.permute(1, 2, 0).numpy(), extent=(left, left + SIZE, top + SIZE, top), aspect="auto")

    write(
        6, 12, f"{name}: layer {channels.layer}, {len(channels.chosen)} of {channels.maps.shape[1]} channels", 9, "left"
    )
    for row, picture in enumerate(pictures):
        top = TOP + row * (SIZE + GAP)
        write(LEFT - 6, top + SIZE / 2, f"image {row}" if labels is None else shortened(labels[row]), align="right")
        show(picture, LEFT, top)
    write(LEFT + SIZE / 2, TOP - 12, "image")
    for i, channel in enumerate(channels.chosen):
        left, maps = LEFT + (i + 1) * (SIZE + GAP), channels.maps[:, channel]
        write(left + SIZE / 2, TOP - 30, "\n".join(heading(channels, i)), 7)
        for row, picture in enumerate(overlay(pictures, maps)):
            show(picture, left, TOP + row * (SIZE + GAP))
    scale(figure, LEFT + SIZE + GAP, height - BOTTOM + 8, width, height)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure


def heading(channels: Channels, i: int) -> list[str]:
    """The title of a column: the channel, its largest value, and the reference channel it corresponds to."""
    channel = channels.chosen[i]
    lines = [f"channel {channel}", f"max. {channels.maps[:, channel].max():.3g}"]
    if channels.reference is not None and channels.cosines is not None:
        name, theirs = channels.reference
        lines += [f"for {shortened(name)} {theirs[i]}", f"cosine {channels.cosines[i]:.2f}"]
    return lines


def scale(figure: Figure, left: float, top: float, width: float, height: float) -> None:
    """The colour scale, below the maps."""
    bar = figure.add_axes((left / width, 1 - (top + 8) / height, (SIZE * 1.5) / width, 8 / height))
    bar.imshow(np.linspace(0, 1, 64)[None], aspect="auto", cmap=COLOURS, extent=(0, 1, 0, 1))
    bar.set_yticks([])
    bar.set_xticks([0, 1], ["0", "channel's max."], fontsize=7)


def shortened(text: str) -> str:
    """A class name that fits, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def pixels(figure: Figure) -> Tensor:
    """A figure as `[3, H, W]` in 0…1."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # classes may be named in any script
        canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1).float() / 255


def overlay(pictures: Tensor, maps: Tensor) -> Tensor:
    """Pictures `[B, 3, S, S]` under the heat maps `[B, h, w]` of one channel, scaled to its maximum over the images."""
    heat = F.interpolate(maps[:, None].relu(), pictures.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    heat = heat / heat.max().clamp(min=1e-12)
    colours = torch.from_numpy(np.asarray(mpl.colormaps[COLOURS](heat.numpy()))[..., :3]).permute(0, 3, 1, 2)
    return (0.4 * pictures + 0.6 * colours).float()
