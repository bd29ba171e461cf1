"""The student and the weighted terms of the loss with their parameters: one module, one DDP wrapper."""

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nst.layers import LOGITS, LayerHooks, Pair
from nst.losses import Shape, TransferLoss
from nst.models.layout import LOGIT_MAPS

Targets = dict[str, dict[str, Tensor]]  # spec key → the teacher's target


@dataclass(frozen=True)
class Term:
    """One weighted term of the run's loss: `weight · Σ_pairs pair.weight · loss(student feature, teacher target)`."""

    name: str
    loss: TransferLoss
    weight: float
    pairs: tuple[Pair, ...]

    @property
    def classifies(self) -> bool:
        """Whether it needs labels or the student's classifier."""
        on_logits = any(pair.student in (LOGITS, *LOGIT_MAPS) for pair in self.pairs)
        return on_logits or self.loss.source == "labels" or "labels" in self.loss.inputs


@dataclass(frozen=True)
class TargetSpec:
    """A target that a loss needs: `loss.target(feature at layer, student_shape)`, under `key`."""

    key: str
    layer: str
    loss: TransferLoss
    student_shape: Shape


@dataclass(frozen=True)
class Instance:
    """One loss module of a term and its pairs of layers: one pair, or all of the term's with `all_layers`."""

    keys: list[str]  # of its target_specs, one a pair: "term:0", "term:1", …; the first names the module
    pairs: tuple[Pair, ...]
    weight: float


class Distiller(nn.Module):
    """Runs the student on a batch and evaluates every term against the teacher's targets."""

    def __init__(
        self,
        student: nn.Module,
        terms: Sequence[Term],
        student_shapes: Mapping[str, Shape],
        teacher_shapes: Mapping[str, Shape],
    ) -> None:
        """Attach layers to the student, images `[B, C, H, W]` → logits, and set up the losses; shapes as by `layers.feature_shapes`."""
        super().__init__()
        self.student = student
        self.terms = tuple(terms)
        self.classifies = any(term.classifies for term in terms)  # else the student learns features alone
        self.hooks = LayerHooks(student, [p.student for t in terms for p in t.pairs])
        self.losses = nn.ModuleDict()  # the losses' own parameters and buffers
        self.instances: dict[str, list[Instance]] = {}
        self.target_specs: list[TargetSpec] = []
        self.gather: Callable[[Tensor], Tensor] | None = None  # the rows of all ranks, with gradient; None: one process
        for term in self.terms:
            keys = [f"{term.name}:{i}" for i in range(len(term.pairs))]
            instances = [Instance([key], (pair,), pair.weight) for key, pair in zip(keys, term.pairs, strict=True)]
            if term.loss.all_layers:
                instances = [Instance(keys, term.pairs, 1.0)]
            self.instances[term.name] = instances
            losses = [term.loss, *(copy.deepcopy(term.loss) for _ in instances[1:])]
            for loss, instance in zip(losses, instances, strict=True):
                self.losses[instance.keys[0]] = loss
                if loss.source != "teacher":
                    continue
                shapes = [student_shapes[pair.student] for pair in instance.pairs]
                teachers = [teacher_shapes[pair.teacher] for pair in instance.pairs]
                loss.setup(*((shapes, teachers) if loss.all_layers else (shapes[0], teachers[0])))
                for key, pair, shape in zip(instance.keys, instance.pairs, shapes, strict=True):
                    self.target_specs.append(TargetSpec(key, pair.teacher, loss, shape))

    def init_memory(self, num_images: int) -> None:
        """Let losses allocate their buffers with one row per training image."""
        for loss in self.losses.values():
            assert isinstance(loss, TransferLoss)
            loss.init_memory(num_images)

    def forward(
        self, images: Tensor, labels: Tensor, targets: Targets, context: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, classes]` and the unweighted value of each term, a float32 scalar averaged over the batch; see `value`.

        Args:
            labels: `[B]` int64; of mixed images `[B, classes]` probabilities.
            targets: the teacher's, by spec key; see `target_specs`.
            context: what losses need besides labels and the teacher, by name; see `losses.base.Input`.
        """
        logits = self.student(images)
        features = self.hooks.read() | {LOGITS: logits}
        context = {**(context or {}), "labels": labels}
        return logits, {term.name: self.value(term, features, targets, context) for term in self.terms}

    def value(
        self, term: Term, features: Mapping[str, Tensor], targets: Targets, context: Mapping[str, Tensor]
    ) -> Tensor:
        """The unweighted value of one term; `features` with the logits, `context` with the labels.

        Raises:
            ValueError: a layer that was not reached; no gradient flows from its features to the student; it is no number.
        """
        layers = [pair.student for pair in term.pairs]
        if missing := [layer for layer in layers if layer not in features]:
            raise ValueError(f"loss.{term.name}: layer {missing[0]} was not reached in this step; name another one")
        if torch.is_grad_enabled() and not any(features[layer].requires_grad for layer in layers):
            raise ValueError(f"loss.{term.name}: no gradient flows from the student's {layers[0]}; is it frozen?")
        value = torch.zeros((), device=features[LOGITS].device)
        for instance in self.instances[term.name]:
            loss = self.losses[instance.keys[0]]
            assert isinstance(loss, TransferLoss)
            labelled = loss.source == "labels"
            extra = {name: context[name] for name in (("labels",) if labelled else loss.inputs)}
            inputs = [extra if labelled else {**targets[key], **extra} for key in instance.keys]
            student = [features[pair.student] for pair in instance.pairs]
            if loss.relational:
                student = [loss.reduce_student(feature) for feature in student]
                if (gather := self.gather) is not None:
                    student = [gather(feature) for feature in student]
                    inputs = [{name: gather(t) if t.ndim else t for name, t in target.items()} for target in inputs]
            part = loss(student, inputs) if loss.all_layers else loss(student[0], inputs[0])
            if part.ndim:
                raise ValueError(f"loss.{term.name}: its forward gives shape {tuple(part.shape)}; one number is needed")
            value = value + instance.weight * part
        return value

    def total(self, values: Mapping[str, Tensor], relational: bool | None = None) -> Tensor:
        """The run's loss: the weighted sum of the terms; optionally of the relational terms only, or of the others only."""
        terms = [term for term in self.terms if relational in (None, term.loss.relational)]
        return torch.stack([term.weight * values[term.name] for term in terms]).sum()


def seed_draws(seed: int) -> None:
    """Seed torch, numpy and `random`, which users' code may draw from as well: draws of a step or a network depend on this alone."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global generator, which users' code draws from)
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block whose draws depend on `seed` alone; afterwards the CPU's generators continue as if there had been none."""
    numpy_state, state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            seed_draws(seed)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(state)
