"""Several teachers at once, as one network: the mean of what they say, and the layers of each under its name."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.files import sha256_of
from nst.losses.base import check_choice
from nst.models.external import Resize
from nst.models.weights import load_weights
from nst.teacher.live import Normalization, input_normalization


@dataclass(frozen=True)
class Member:
    """One network of an ensemble.

    Args:
        network: images -> logits, or features of a network without a classifier.
        weights: its file.
        mean, std: of its inputs; None: as stored with the weights, else those of the network's library, else the data's.
        input_size: the size at which it looks at the images; None: as they come.
    """

    network: nn.Module
    weights: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    input_size: int | None = None


class Ensemble(nn.Module):
    """Teachers of the same classes, or any without a classifier: `a.last` is the layer `last` of the member `a`.

    Each member sees the same view of an image, at its own size and normalisation, once `load` was called.

    Args:
        members: name → the arguments of a `Member`. The network of member `a` is the submodule `a`.
        average: the ensemble's logits are the logarithm of the members' mean probabilities ("probabilities") or the mean of their
            "logits"; None, for members without a classifier: their outputs side by side.

    Raises:
        ValueError: fewer than two members, a name that cannot be a submodule's, or an unknown average.
    """

    def __init__(self, members: Mapping[str, Mapping[str, Any]], average: str | None = "probabilities") -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(
                f"members: {', '.join(members) or 'none'}; an ensemble has two or more, each with a name and a network"
            )
        if average is not None:
            check_choice("average", average, ("probabilities", "logits"))
        self.average = average
        self.members = {name: Member(**member) for name, member in members.items()}
        self.named_layers: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the images that each network saw last, for its layout
        for name, member in self.members.items():
            if "." in name or hasattr(self, name):
                raise ValueError(
                    f"members.{name}: not a possible name of a member; letters such as a, b or teacher1 are"
                )
            self.add_module(name, member.network)
            if member.input_size is not None:
                member.network.register_forward_pre_hook(Resize(member.input_size), prepend=True)
            member.network.register_forward_pre_hook(self._note_shape(name))
            named: dict[str, str] = getattr(member.network, "named_layers", {})
            self.named_layers |= {f"{name}.{layer}": f"{name}.{path}" for layer, path in named.items()}

    def _note_shape(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._shapes[name] = tuple(inputs[0].shape)

        return hook

    def feature_layout(self, model: nn.Module, path: str) -> Any:
        """How the output of a member's layer becomes a map: as in the member alone (see `nst.models.layout`)."""
        name, _, inner = path.partition(".")
        layout = getattr(self.members[name].network, "feature_layout", None)
        if layout is None or not inner:
            return lambda value, images: value
        convert = layout(self.members[name].network, inner)
        return lambda value, images: convert(value, self._shapes[name])

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, classes]; with `average=None` [B, all members' outputs]."""
        outputs = [member.network(images) for member in self.members.values()]
        if self.average is None:
            return torch.cat(outputs, 1)
        sizes = {name: tuple(output.shape[1:]) for name, output in zip(self.members, outputs, strict=True)}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"the members' outputs have different shapes, {', '.join(f'{n}: {s}' for n, s in sizes.items())}, so they have no mean; "
                "average=null is for members without a classifier"
            )
        if self.average == "logits":
            return torch.stack(outputs).mean(0)
        log_probabilities = torch.stack([F.log_softmax(output.float(), 1) for output in outputs])
        return log_probabilities.logsumexp(0) - torch.tensor(float(len(outputs))).log().item()

    def load(self, images: Normalization) -> dict[str, dict[str, Any]]:
        """Load the members' weights, and have each convert images of this normalisation to its own.

        Returns:
            By member: its weights file and SHA-256, its number of parameters, its normalisation and where that is from.

        Raises:
            ValueError: a member without weights, or with those of another network; names the member.
        """
        facts: dict[str, dict[str, Any]] = {}
        for name, member in self.members.items():
            metadata: dict[str, str] = {}
            if member.weights is None and not hasattr(member.network, "input_format"):
                raise ValueError(
                    f"teacher.model.members.{name}: its weights are missing: name a file, or network.pretrained=true"
                )
            try:
                if member.weights is not None:
                    metadata = load_weights(member.network, member.weights)
            except ValueError as error:
                raise ValueError(f"teacher.model.members.{name}: {error}") from error
            expects, source = input_normalization(member.network, member.mean, member.std, metadata, images)
            if expects != images:
                member.network.register_forward_pre_hook(_Convert(images, expects), prepend=True)
            facts[name] = {
                "weights": member.weights or "pretrained",
                "sha256": sha256_of(member.weights) if member.weights else state_sha256(member.network),
                "parameters": sum(p.numel() for p in member.network.parameters()),
                "input": f"{expects}, {source}",
            }
        return facts


class _Convert:
    """A hook before a network's `forward`: images from one normalisation to another."""

    def __init__(self, images: Normalization, expects: Normalization) -> None:
        self.constants = [torch.tensor(values).view(1, -1, 1, 1) for values in images.onto(expects)]

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *others = inputs
        self.constants = [constant.to(images.device) for constant in self.constants]
        scale, shift = self.constants
        return images * scale + shift, *others


def state_sha256(model: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers, for one without a weights file."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
