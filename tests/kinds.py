"""One small loss of each kind that a run must treat right; see `nst.losses.TransferLoss`."""

import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nst.losses import Shape, TransferLoss


class OfFeature(TransferLoss):
    """The teacher's feature, pooled: what all of these compare with."""

    @property
    def target_key(self) -> str:
        return "pooled"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        return {"pooled": teacher_feature.float().mean((2, 3))}

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        return {"pooled": (teacher_shape[0],)}


class Learned(OfFeature):
    """A linear map of the student's pooled feature, which is learned."""

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        self.map = nn.Linear(student_shape[0], teacher_shape[0])

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        mapped = self.map(student_feature.float().mean((2, 3)))
        return (mapped - target["pooled"].float()).square().mean()


class Relational(OfFeature):
    """Similarities between the images of a batch."""

    relational = True

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        student = nn.functional.normalize(student_feature.float().mean((2, 3)), dim=1)
        teacher = nn.functional.normalize(target["pooled"].float(), dim=1)
        return (student @ student.T - teacher @ teacher.T).square().mean()


class Remembering(OfFeature):
    """The distance to what is remembered of each image and of a random one; both sides learn."""

    relational = True
    inputs = ("index", "seed")

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        self.student, self.teacher = nn.Linear(student_shape[0], 4), nn.Linear(teacher_shape[0], 4)

    def init_memory(self, num_images: int) -> None:
        self.register_buffer("bank", torch.randn(num_images, 4))

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        own = self.student(student_feature.float().mean((2, 3)))
        known = self.teacher(target["pooled"].float())
        draw = torch.Generator().manual_seed(int(target["seed"]))
        others = torch.randint(len(self.bank), (len(own),), generator=draw).to(own.device)
        bank = self.bank.clone()
        value = (own - bank[target["index"]]).square().mean() + (known - bank[others]).square().mean()
        if self.training:
            self.bank[target["index"]] = 0.5 * bank[target["index"]] + 0.5 * known.detach()
        return value + (own - known).square().mean()


class Ramped(OfFeature):
    """Grows over the run, and only counts images of even classes."""

    inputs = ("labels", "epoch", "progress")

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        even = (target["labels"] % 2 == 0).float()
        rows = (student_feature.float().mean((2, 3)).mean(1) - target["pooled"].float().mean(1)).square()
        return (even * rows).mean() * target["progress"] * (1 + target["epoch"])


class SeveralLayers(OfFeature):
    """One map over the pooled features of all layers."""

    all_layers = True

    def setup(self, student_shape: Sequence[Shape], teacher_shape: Sequence[Shape]) -> None:
        own, known = sum(shape[0] for shape in student_shape), sum(shape[0] for shape in teacher_shape)
        self.map = nn.Linear(own, known)

    def forward(self, student_feature: Sequence[Tensor], target: Sequence[Mapping[str, Tensor]]) -> Tensor:
        own = torch.cat([feature.float().mean((2, 3)) for feature in student_feature], 1)
        known = torch.cat([part["pooled"].float() for part in target], 1)
        return (self.map(own) - known).square().mean()


class Drawing(OfFeature):
    """Draws from the generators of numpy and Python, when it is made and when it is set up."""

    def __init__(self) -> None:
        super().__init__()
        self.made = self.draw()

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        self.set_up = self.draw()

    def draw(self) -> tuple[int, int]:
        return random.randrange(10**9), int(np.random.randint(10**9))  # noqa: NPY002

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        return student_feature.float().mean()


class Unequal(OfFeature):
    """Writes what it has seen into a buffer without saying that it relates images: other values on other ranks."""

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        self.seen += student_feature.detach().float().mean()
        return student_feature.float().mean().square()
