"""Several teachers at once, as one network: the mean of what they say, and the layers of each under its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.files import digest
from nst.losses.base import check_choice
from nst.models.external import resize_inputs, resized_to
from nst.models.weights import recorded_size
from nst.teacher.network import Normalization, load_teacher


@dataclass(frozen=True)
class Member:
    """One network of an ensemble: images -> logits, or features of a network without a classifier."""

    network: nn.Module
    weights: str | None = None  # its file
    weights_key: str | None = None  # the state to load where the file holds several, such as "state_dict_ema"
    mean: Sequence[float] | None = None  # of its inputs; None: as `load_teacher` finds it
    std: Sequence[float] | None = None
    input_size: int | None = None  # at which it looks at the images; None: as stored with the weights, or as they come


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
            raise ValueError(f"members: {', '.join(members) or 'none'}; an ensemble has two or more")
        if average is not None:
            check_choice("average", average, ("probabilities", "logits"))
        self.average = average
        self.members: dict[str, Member] = {}
        self.named_layers: dict[str, str] = {}
        for name, arguments in members.items():
            try:
                self.members[name] = member = Member(**arguments)
                self.add_module(name, member.network)
                resize_inputs(member.network, member.input_size or recorded_size(member.weights))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"members.{name}: {error}") from error
            for layer, path in getattr(member.network, "named_layers", {}).items():
                self.named_layers[f"{name}.{layer}"] = f"{name}.{path}"

    def feature_layout(self, model: nn.Module, path: str) -> Any:
        """How the output of a member's layer becomes a map: as in the member alone (see `nst.models.layout`)."""
        name, _, inner = path.partition(".")
        network = self.members[name].network
        layout, size = getattr(network, "feature_layout", None), resized_to(network)
        if layout is None or not inner:
            return lambda value, images: value
        convert = layout(network, inner)
        return lambda value, images: convert(value, images if size is None else (*images[:2], size, size))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, classes]; with `average=None` [B, all members' outputs]."""
        outputs = [member.network(images) for member in self.members.values()]
        if self.average is None:
            return torch.cat(outputs, 1)
        if len(shapes := {tuple(output.shape[1:]) for output in outputs}) > 1:
            raise ValueError(f"the members' outputs have different shapes, {shapes}, so no mean; average=null has none")
        if self.average == "logits":
            return torch.stack(outputs).mean(0)
        log_probabilities = torch.stack([F.log_softmax(output.float(), 1) for output in outputs])
        return log_probabilities.logsumexp(0) - torch.tensor(float(len(outputs))).log().item()

    def load(self, images: Normalization) -> dict[str, Any]:
        """Load the members' weights; each converts images of this normalisation to its own. As `load_teacher`; also by member: `members`."""
        facts: dict[str, dict[str, Any]] = {}
        for name, member in self.members.items():
            network, file = member.network, member.weights
            try:
                if file is None and not hasattr(network, "input_format"):
                    raise ValueError("its weights are missing: name a file, or network.pretrained=true")
                facts[name] = load_teacher(network, images, file, member.weights_key, member.mean, member.std)
            except (TypeError, ValueError) as error:
                raise ValueError(f"teacher.model.members.{name}: {error}") from error
        sha256 = digest({name: known["sha256"] for name, known in facts.items()}, 64)
        about = {"weights": f"those of {', '.join(facts)}", "members": facts, "sha256": sha256}
        return about | {"parameters": sum(known["parameters"] for known in facts.values())}
