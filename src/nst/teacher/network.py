"""A teacher's network: its weights, the images that it expects, its batch norms folded into its convolutions."""

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from nst.files import sha256_of
from nst.layers import LOGITS, LayerHooks
from nst.models.external import InputFormat, looked_at
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

    def onto(self, other: "Normalization") -> tuple[list[float], list[float]]:
        """Scale and shift per channel that turn images normalised by `self` into images normalised by `other`."""
        scale = [s / o for s, o in zip(self.std, other.std, strict=True)]
        shift = [(m - o) / s for m, o, s in zip(self.mean, other.mean, other.std, strict=True)]
        return scale, shift


def expected_normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, metadata: Mapping[str, str]
) -> Normalization | None:
    """The normalisation that weights were trained with: as given, else as stored with them (metadata), else unknown."""
    stored = {key: [float(v) for v in metadata[key].split(",")] for key in ("mean", "std") if key in metadata}
    mean, std = mean or stored.get("mean"), std or stored.get("std")
    return Normalization(tuple(mean), tuple(std)) if mean and std else None


def load_teacher(
    network: nn.Module,
    images: Normalization,
    weights: str | None = None,
    weights_key: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Give a network its weights, and let it take images as the data has them: it converts them to its own normalisation.

    Args:
        network: on its device.
        images: the normalisation of the images that it will get.
        weights: its file; None: it has its weights (`pretrained`).
        weights_key: the state to load where the file holds several.
        mean, std: of the images that it was trained on; None: as stored with the weights, else by the record of the network's library,
            else as `images`.

    Returns:
        The weights' file and their `sha256`, the number of `parameters`, and `input`: the normalisation, and where that is from.

    Raises:
        ValueError: weights of another network.
    """
    metadata = {} if weights is None else load_weights(network, weights, weights_key)
    record: InputFormat | None = getattr(network, "input_format", None)
    expects, source = expected_normalization(mean, std, metadata), "as given" if mean else "as stored with its weights"
    if expects is None and record is not None:
        expects, source = Normalization(record.mean, record.std), f"by the record of {record.source}"
    elif expects is None:
        expects, source = images, "as the data, since its weights say nothing else"
    if expects != images:
        convert_inputs(network, images, expects)
    if (size := looked_at(network)) is not None:
        source += f"; looked at as {size}×{size} pixels"
    return {
        "weights": weights or "pretrained",
        "sha256": state_sha256(network) if weights is None else sha256_of(weights),
        "parameters": sum(p.numel() for p in network.parameters()),
        "input": f"{expects}, {source}",
    }


def convert_inputs(network: nn.Module, images: Normalization, expects: Normalization) -> None:
    """From now on the network takes images `[B, C, H, W]` of the normalisation `images`, and converts them to what it expects."""
    device = next(network.parameters()).device
    scale, shift = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in images.onto(expects))

    def convert(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0] * scale + shift, *inputs[1:]

    network.register_forward_pre_hook(convert, prepend=True)


def state_sha256(model: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers, for one without a weights file."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def fold_batch_norm(model: nn.Module, images: Tensor, layers: Iterable[str] = ()) -> int:
    """Fold each `BatchNorm2d` into the `Conv2d` before it, in place: the norm becomes `nn.Identity`.

    For networks that only run forward, before hooks are attached. Modules keep their names, so layers can be named as before. If
    the output or a feature moves by more than rounding, the network stays as it was: a convolution's own output is then used, too.

    Args:
        model: in `eval()` mode, on the device of `images`.
        images: `[B, C, H, W]`; pairs are found, and outputs compared, by running the model on them.
        layers: named layers, whose features must stay.

    Returns:
        How many pairs were folded.
    """
    layers = list(layers)
    convolved: dict[int, tuple[str, Tensor]] = {}  # id of an output → convolution; the output keeps the id in use
    pairs: dict[str, str] = {}  # norm → convolution
    handles = []
    for name, module in model.named_modules():
        # A convolution with other parameters computes its weight from them (`weight_norm`), so it is left as it is.
        if type(module) is nn.Conv2d and module._parameters.keys() == {"weight", "bias"}:

            def note(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
                convolved[id(output)] = (name, output)

            handles.append(module.register_forward_hook(note))
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:

            def match(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if found := convolved.get(id(inputs[0])):
                    pairs[name] = found[0]

            handles.append(module.register_forward_pre_hook(match))
    before = _features(model, images, layers)
    for handle in handles:
        handle.remove()
    originals = {name: model.get_submodule(name) for pair in pairs.items() for name in pair}
    for norm, conv in pairs.items():
        exact: list[Any] = [copy.deepcopy(originals[name]).double() for name in (conv, norm)]
        dtype = next(originals[conv].parameters()).dtype
        model.set_submodule(conv, fuse_conv_bn_eval(exact[0], exact[1]).to(dtype).requires_grad_(False))
        model.set_submodule(norm, nn.Identity())
    after = _features(model, images, layers)
    if all((after[k] - value).abs().max() <= FOLDING_TOLERANCE * value.abs().max() for k, value in before.items()):
        return len(pairs)
    for name, module in originals.items():
        model.set_submodule(name, module)
    return 0


def _features(model: nn.Module, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
    """Logits and the features at the layers."""
    hooks = LayerHooks(model, layers)
    logits = model(images)
    hooks.remove()
    return hooks.read() | {LOGITS: logits}
