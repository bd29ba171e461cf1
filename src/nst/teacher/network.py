"""A teacher's network: its weights, the images that it expects, its batch norms folded into its convolutions."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from nst.files import sha256_of
from nst.layers import LOGITS, LayerHooks
from nst.models.external import InputFormat, resized_to
from nst.models.weights import load_weights

FOLDING_TOLERANCE = 1e-3  # of the largest value: folding in float32 moves a deep network's logits by about 1e-4


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of a network's inputs, per channel, for pixels in 0…1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}"


def load_teacher(
    network: nn.Module,
    images: Normalization,
    weights: str | None = None,
    weights_key: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Give a network on its device its weights, and have it convert images as the data has them to its own normalisation.

    Args:
        images: the normalisation of the images that it will get.
        weights: its file, `weights_key` the state in it, where it holds several; None: it has its weights (`pretrained`).
        mean, std: of the images that it was trained on; None: as stored with the weights, else by the record of the network's library,
            else as `images`.

    Returns:
        The weights' file and their `sha256`, the number of `parameters`, and `input`: the normalisation, and where that is from.

    Raises:
        ValueError: weights of another network, one of `mean` and `std` alone, or a `std` that is not above 0.
    """
    if (mean is None) != (std is None) or not all(value > 0 for value in std or ()):
        raise ValueError(f"mean={mean}, std={std}: both or neither are needed, std above 0")
    metadata = {} if weights is None else load_weights(network, weights, weights_key)
    record: InputFormat | None = getattr(network, "input_format", None)
    expects, source = images, "as the data, since its weights say nothing else"
    if mean is not None and std is not None:
        expects, source = Normalization(tuple(mean), tuple(std)), "as given"
    elif {"mean", "std"} <= metadata.keys():
        stored = (tuple(map(float, metadata[key].split(","))) for key in ("mean", "std"))
        expects, source = Normalization(*stored), "as stored with its weights"
    elif record is not None:
        expects, source = Normalization(record.mean, record.std), f"by the record of {record.source}"
    if expects != images:
        device = next(network.parameters()).device
        scales = [ours / own for ours, own in zip(images.std, expects.std, strict=True)]
        shifts = [(ours - own) / std for ours, own, std in zip(images.mean, expects.mean, expects.std, strict=True)]
        scale, shift = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (scales, shifts))
        network.register_forward_pre_hook(lambda _, inputs: (inputs[0] * scale + shift, *inputs[1:]), prepend=True)
    if (size := resized_to(network)) is not None:
        source += f"; looked at as {size}×{size} pixels"
    content = sha256()
    for name, value in sorted(network.state_dict().items()) if weights is None else ():
        content.update(name.encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    of = content.hexdigest() if weights is None else sha256_of(weights)
    parameters, own = sum(p.numel() for p in network.parameters()), f"{expects}, {source}"
    return {"weights": weights or "pretrained", "sha256": of, "parameters": parameters, "input": own}


@torch.no_grad()
def fold_batch_norm(model: nn.Module, images: Tensor, layers: Sequence[str] = ()) -> int:
    """Fold each `BatchNorm2d` into the `Conv2d` before it, in place: the norm becomes `nn.Identity`.

    For networks in `eval()` mode that only run forward, before hooks are attached. Modules keep their names. If the output or a feature
    moves by more than rounding, the network stays as it was: a convolution's own output is then used, too.

    Args:
        images: `[B, C, H, W]`; pairs are found, and outputs compared, by running the model on them.
        layers: named layers, whose features must stay.

    Returns:
        How many pairs were folded.
    """

    def features() -> dict[str, Tensor]:
        hooks = LayerHooks(model, layers)
        logits = model(images)
        hooks.remove()
        return hooks.read() | {LOGITS: logits}

    def note(conv: nn.Module, _inputs: Any, output: Tensor) -> None:
        convolved[id(output)] = (conv, output)

    def match(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if found := convolved.get(id(inputs[0])):
            pairs[norm] = found[0]

    convolved: dict[int, tuple[nn.Module, Tensor]] = {}  # id of an output → convolution; the output keeps the id in use
    pairs: dict[nn.Module, nn.Module] = {}  # norm → convolution
    names, handles = {module: name for name, module in model.named_modules()}, []
    for module in names:
        # A convolution with other parameters computes its weight from them (`weight_norm`), so it is left as it is.
        if type(module) is nn.Conv2d and module._parameters.keys() == {"weight", "bias"}:
            handles.append(module.register_forward_hook(note))
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(match))
    before = features()
    for handle in handles:
        handle.remove()
    for norm, conv in pairs.items():
        exact: list[Any] = [copy.deepcopy(module).double() for module in (conv, norm)]
        folded = fuse_conv_bn_eval(exact[0], exact[1]).to(next(conv.parameters()).dtype)
        model.set_submodule(names[conv], folded.requires_grad_(False))
        model.set_submodule(names[norm], nn.Identity())
    after = features()
    if all((after[k] - value).abs().max() <= FOLDING_TOLERANCE * value.abs().max() for k, value in before.items()):
        return len(pairs)
    for module in (*pairs, *pairs.values()):
        model.set_submodule(names[module], module)
    return 0
