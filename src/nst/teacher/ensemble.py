"""Several teachers at once, as one network: the mean of what they say, and the layers of each under its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import check_choice
from nst.models.external import look_at
from nst.models.weights import recorded_size
from nst.teacher.network import Normalization, load_teacher


@dataclass(frozen=True)
class Member:
    """One network of an ensemble.

    Args:
        network: images -> logits, or features of a network without a classifier.
        weights: its file.
        weights_key: the state to load where the file holds several, such as "state_dict_ema".
        mean, std: of its inputs; None: as stored with the weights, else those of the network's library, else the data's.
        input_size: the size at which it looks at the images; None: as stored with the weights, else as they come.
    """

    network: nn.Module
    weights: str | None = None
    weights_key: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    input_size: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for settings of another type or range."""
        if not isinstance(self.network, nn.Module):
            raise ValueError(f"network={self.network!r}: a network is needed")
        if self.weights is not None and not isinstance(self.weights, str):
            raise ValueError(f"weights={self.weights!r}: the path of a file is needed")
        if self.input_size is not None and (type(self.input_size) is not int or self.input_size < 1):
            raise ValueError(f"input_size={self.input_size!r}: a number of pixels is needed")
        for values in (self.mean, self.std):
            if values is not None and (isinstance(values, str) or any(type(v) not in (int, float) for v in values)):
                raise ValueError(f"mean={self.mean}, std={self.std}: a number for each channel is needed")
        if (self.mean is None) != (self.std is None) or min(self.std or [1]) <= 0:
            raise ValueError(f"mean={self.mean}, std={self.std}: both or neither are needed, std above 0")


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
            names = ", ".join(members) or "none"
            raise ValueError(f"members: {names}; an ensemble has two or more, each with a name and a network")
        if average is not None:
            check_choice("average", average, ("probabilities", "logits"))
        self.average = average
        self.members: dict[str, Member] = {}
        for name, member in members.items():
            try:
                self.members[name] = Member(**member)
            except (TypeError, ValueError) as error:
                raise ValueError(f"members.{name}: {error}") from error
        self.named_layers: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the images that each network saw last, for its layout
        for name, member in self.members.items():
            if "." in name or hasattr(self, name):
                raise ValueError(f"members.{name}: not a possible name of a member; letters such as a or teacher1 are")
            self.add_module(name, member.network)

            def note_shape(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                self._shapes[name] = tuple(inputs[0].shape)

            look_at(member.network, member.input_size or recorded_size(member.weights))
            member.network.register_forward_pre_hook(note_shape)
            named: dict[str, str] = getattr(member.network, "named_layers", {})
            self.named_layers |= {f"{name}.{layer}": f"{name}.{path}" for layer, path in named.items()}

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
        outputs = {name: member.network(images) for name, member in self.members.items()}
        if self.average is None:
            return torch.cat([*outputs.values()], 1)
        if len({output.shape for output in outputs.values()}) > 1:
            shapes = ", ".join(f"{name}: {tuple(output.shape[1:])}" for name, output in outputs.items())
            raise ValueError(
                f"the members' outputs have different shapes, {shapes}, so they have no mean; average=null is for members without a classifier"
            )
        if self.average == "logits":
            return torch.stack([*outputs.values()]).mean(0)
        log_probabilities = torch.stack([F.log_softmax(output.float(), 1) for output in outputs.values()])
        return log_probabilities.logsumexp(0) - torch.tensor(float(len(outputs))).log().item()

    def load(self, images: Normalization) -> dict[str, dict[str, Any]]:
        """Load the members' weights, and have each convert images of this normalisation to its own.

        Returns:
            By member, what `load_teacher` returns.

        Raises:
            ValueError: a member without weights, or with those of another network; names the member.
        """
        facts: dict[str, dict[str, Any]] = {}
        for name, member in self.members.items():
            key = f"teacher.model.members.{name}"
            if member.weights is None and not hasattr(member.network, "input_format"):
                raise ValueError(f"{key}: its weights are missing: name a file, or network.pretrained=true")
            try:
                facts[name] = load_teacher(
                    member.network, images, member.weights, member.weights_key, member.mean, member.std
                )
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        return facts
