"""How hard each term of a run's loss pulls at the student, beside the cross-entropy."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nst.data.batch import Batch
from nst.distiller import Distiller, Summaries


@dataclass(frozen=True)
class Pull:
    """A term's gradient in the student's parameters, mean over some batches."""

    term: str
    weight: float
    value: float  # of the term, unweighted
    strength: float  # norm of the weighted gradient, over that of the terms that need no teacher
    cosine: float  # between the two: 1 both want the same, 0 they have nothing to do with each other, −1 the opposite


def pulls(distiller: Distiller, knowledge: Callable[[Batch], Summaries], batches: Iterable[Batch]) -> list[Pull]:
    """Measure every term on the student as it is, in training mode: its parameters stay, its running statistics move.

    Args:
        batches: at least one.

    Raises:
        ValueError: no term of labels to compare with.
    """
    labels = [term for term in distiller.terms if term.loss.source == "labels"]
    if not labels:
        raise ValueError("loss: no term learns from the labels, so there is nothing to compare the others with")
    distiller.train()
    batches = list(batches)
    gradients = {term.name: torch.zeros(()) for term in distiller.terms}
    values = dict.fromkeys(gradients, 0.0)
    for batch in batches:
        _, terms = distiller(batch.images, batch.labels, knowledge(batch))
        for term in distiller.terms:
            gradients[term.name] = gradients[term.name] + term.weight * gradient(distiller, terms[term.name]).cpu()
            values[term.name] += terms[term.name].item() / len(batches)
    own = torch.stack([gradients[term.name] for term in labels]).sum(0)
    return [
        Pull(
            term.name, term.weight, values[term.name],
            float(gradients[term.name].norm() / own.norm()),
            float(torch.cosine_similarity(gradients[term.name], own, dim=0)),
        )
        for term in distiller.terms
    ]  # fmt: skip


def gradient(distiller: Distiller, value: Tensor) -> Tensor:
    """Of a scalar, in all of the student's parameters: one vector, zero where the value does not depend on them."""
    parameters = [p for p in distiller.student.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(found, parameters, strict=True)]
    )
