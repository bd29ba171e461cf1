"""Distillation by Wasserstein distances: WKD-L between logits, WKD-F between features.

Lv, Yang & Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation, NeurIPS 2024.
"""

from collections.abc import Mapping
from itertools import product
from math import ceil, floor, pi
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import (
    Shape,
    TransferLoss,
    check_choice,
    check_equal,
    check_map,
    check_numbers,
    made,
    map_shapes,
    no_autocast,
    target_tensor,
    working_dtype,
)
from nst.losses.kd import LogitLoss, label_expectation, log_softmax_without
from nst.losses.maps import conv_bn_relu

COST_EPS = 1e-8  # added to the costs and to the divisors of a Sinkhorn step, as in the authors' code
CHUNK_BYTES = 64 << 20  # of the centred Gram matrices of all classes that are held at a time
Projector = Literal["conv_bn_relu", "bottleneck"]


def cosine_decay_factor(epoch: Tensor | None, start: float, epochs: float | None) -> Tensor | float:
    """1 in the e-th epoch up to `start`, counted from 1, then half a cosine to 0 in the last of `epochs`; 1 where that is null."""
    if epoch is None or epochs is None or start >= epochs:
        return 1.0
    done = ((epoch.floor() + 1 - start) / (epochs - start)).clamp(0.0, 1.0)
    return torch.where(epoch.isinf(), 1.0, 0.5 * (1 + torch.cos(pi * done)))


class WKDL(LogitLoss):
    """−p_T[y] · log p_S[y] + λ(e) · Σ_ij P_ij · C_ij; mean over the batch.

    y is the image's label, p = softmax(z). P is the entropic transport plan between the softmax(z / T) of student and teacher over the
    classes but y: `steps` Sinkhorn steps from u = 1 / (classes − 1) with K = exp(−C / regularization), v = p̂_T / (Kᵀu + 1e-8) and
    u = p̂_S / (K v + 1e-8), P = diag(u) K diag(v); the gradient goes through the steps. The cost between two classes is
    C = 1 − exp(−κ · (1 − CKA)) + 1e-8, CKA that of the teacher's features of their images (`class_similarity`). λ(e) is `transport`
    until epoch `decay_from`, then falls to 0 in the last epoch by half a cosine. One cost matrix serves all images.

    Args:
        temperature: T > 0.
        transport: λ, at least 0.
        sharpness: κ > 0.
        regularization: of the transport plan, more than 0.
        steps: Sinkhorn steps, at least 1.
        decay_from: epochs before λ falls, at least 0.
        epochs: of the run, for the end of the decay; null: λ is constant.
    """

    teacher_layer: ClassVar[str | None] = "pooled"
    cost: Tensor | None

    def __init__(
        self,
        temperature: float = 8.0,
        transport: float = 600.0,
        sharpness: float = 1.0,
        regularization: float = 0.05,
        steps: int = 10,
        decay_from: float = 150,
        epochs: float | None = None,
    ) -> None:
        super().__init__(temperature)
        check_numbers(above=0, sharpness=sharpness, regularization=regularization)
        check_numbers(above=0, epochs=1 if epochs is None else epochs)
        check_numbers(least=0, transport=transport, decay_from=decay_from)
        check_numbers(least=1, whole=True, steps=steps)
        self.transport, self.sharpness, self.regularization = transport, sharpness, regularization
        self.steps, self.decay_from, self.epochs = steps, decay_from, epochs
        self.inputs = ("labels",) if epochs is None else ("labels", "epoch")
        self.register_buffer("cost", None)

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the cost matrix, NaN until `init_teacher`."""
        self.cost = torch.full((teacher_shape[0], teacher_shape[0]), torch.nan)

    def teacher_statistics(self, features: Tensor, labels: Tensor) -> Tensor:
        """CKA of the classes, `[classes, classes]`; see `class_similarity`."""
        return class_similarity(features, labels, len(made(self.cost)))

    def init_teacher(self, statistics: Tensor) -> None:
        """Set the cost matrix from the CKA of the classes."""
        cost = 1 - torch.exp(-self.sharpness * (1 - statistics.double()))
        made(self.cost).copy_(cost.relu() + COST_EPS)

    def value(self, student: Tensor, teacher: Tensor, labels: Tensor, epoch: Tensor | None = None) -> Tensor:
        """Of logits `[B, classes]` and labels `[B]` int64, `epoch` epochs done so far; NaN before `init_teacher`."""
        own = F.one_hot(labels, student.shape[1]).bool()
        p_s, p_t = (log_softmax_without(z / self.temperature, own).exp() for z in (student, teacher))
        cost = made(self.cost).to(student.dtype)
        # The cost of the transport plan from the student's to the teacher's; a class with 0 in both has no part.
        u = v = (~own).to(student.dtype) / max(1, student.shape[1] - 1)
        kernel = torch.exp(-cost / self.regularization)
        for _ in range(self.steps):
            v = p_t / (u @ kernel + COST_EPS)
            u = p_s / (v @ kernel.T + COST_EPS)
        distance = (u * (v @ (kernel * cost).T)).sum(dim=1)
        decay = cosine_decay_factor(epoch, self.decay_from, self.epochs)
        return (decay * self.transport * distance - label_expectation(student, teacher, labels)).mean()


@torch.no_grad()
def class_similarity(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Linear CKA between the features of every two classes' images, `[classes, classes]` in the working precision.

    CKA(i, j) = ⟨G_i, G_j⟩ / (‖G_i‖ · ‖G_j‖), G_i = H X_i X_iᵀ H the centred Gram matrix of class i's images, `[n, n]`, in their order:
    the first n of each class, n the smallest class's count. A class without any variation has 0 with the others and 1 with itself.

    Args:
        features: `[N, D]`, one an image.
        labels: `[N]` int64.
        classes: how many there are.

    Raises:
        ValueError: a class has fewer than 2 images.
    """
    counts = torch.bincount(labels, minlength=classes)
    count = int(counts.min())
    if count < 2:
        raise ValueError(f"class {int(counts.argmin())} has {count} training images; their similarity needs 2")
    order = torch.argsort(labels, stable=True)
    first = (counts.cumsum(0) - counts)[:, None] + torch.arange(count, device=labels.device)
    x = features.to(working_dtype(features))[order[first]]  # [classes, n, D]
    x = x - x.mean(dim=1, keepdim=True)
    x = x / x.square().sum(dim=(1, 2), keepdim=True).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    rows = max(1, CHUNK_BYTES // (classes * count * x.element_size()))
    products = x.new_zeros(classes, classes)
    for part in x.split(rows, dim=1):
        grams = (part @ x.mT).flatten(1)  # rows of all classes' Gram matrices: [classes, rows · n]
        products += grams @ grams.T
    norms = products.diagonal().sqrt()
    scale = norms[:, None] * norms
    similarity = torch.where(scale == 0, 0.0, products / torch.where(scale == 0, 1.0, scale))
    similarity.fill_diagonal_(1.0)
    return similarity


class WKDF(TransferLoss):
    """λ(e)/λ · 1/g² · Σ over channels and cells of ρ · (μ_S − μ_T)² + (σ_S − σ_T)²; mean over the batch.

    The map is cut into g × g cells as adaptive pooling does; μ is a channel's mean over a cell's positions and
    σ = √(variance + 1e-5) its deviation: the 2-Wasserstein distance of two Gaussians with diagonal covariance, ρ before the
    means. The student's map goes through a projector to the teacher's channels first. The factor λ(e)/λ is 1 until epoch `decay_from`,
    then falls to 0 in the last epoch by half a cosine; λ is the term's weight.

    Args:
        ratio: ρ, at least 0.
        grid: g, at least 1; a cell needs two positions of the projected map and of the teacher's.
        projector: "conv_bn_relu": FitNet's, a 1×1 convolution with batch norm and ReLU where the maps have one size. "bottleneck": 1×1 to 256
            channels, 3×3, 1×1, batch norm and ReLU at the end.
        decay_from: epochs before λ falls, at least 0.
        epochs: of the run, for the end of the decay; null: λ is constant.
        convention: "paper": the variance is divided by the number of positions (by a summary of the paper). "official": by one less.
    """

    def __init__(
        self,
        ratio: float = 4.0,
        grid: int = 1,
        projector: Projector = "conv_bn_relu",
        decay_from: float = 150,
        epochs: float | None = None,
        convention: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__()
        check_numbers(least=0, ratio=ratio, decay_from=decay_from)
        check_numbers(least=1, whole=True, grid=grid)
        check_choice("projector", projector, get_args(Projector))
        check_numbers(above=0, epochs=1 if epochs is None else epochs)
        check_choice("convention", convention, ("paper", "official"))
        self.ratio, self.grid, self.kind, self.decay_from, self.epochs = ratio, grid, projector, decay_from, epochs
        self.inputs = () if epochs is None else ("epoch",)
        self.correction = 1 if convention == "official" else 0
        self.projector: nn.Module | None = None

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the projector. Raises ValueError for maps that it cannot bring together."""
        if self.kind == "conv_bn_relu":
            self.projector = conv_bn_relu(student_shape, teacher_shape)
            return
        channels = teacher_shape[0]
        convolutions = (
            nn.Conv2d(student_shape[0], 256, 1),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.Conv2d(256, channels, 1),
        )
        self.projector = nn.Sequential(*convolutions, nn.BatchNorm2d(channels), nn.ReLU())

    @property
    def target_key(self) -> str:
        """The moments of a grid, by the divisor of the variance."""
        return f"moments-{self.grid}-{self.correction}"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"mean", "deviation"}`, each `[B, C_T, g, g]`. Raises ValueError for a feature that is no map."""
        check_map(teacher_feature, "teacher")
        with no_autocast(teacher_feature):
            return dict(zip(("mean", "deviation"), self.moments(teacher_feature), strict=True))

    def moments(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations over the cells of a map `[B, C, H, W]`, each `[B, C, g, g]` in the working precision."""
        feature = feature.to(working_dtype(feature))
        means, variances = [], []
        for rows, columns in product(self.cuts(feature.shape[2]), self.cuts(feature.shape[3])):
            cell = feature[:, :, rows, columns]
            mean = cell.mean(dim=(2, 3), keepdim=True)
            squares = (cell - mean).square().sum(dim=(2, 3))  # faster here than torch.var, forward and backward
            means.append(mean.flatten(1))
            variances.append(squares / (cell.shape[2] * cell.shape[3] - self.correction))
        mean, variance = (torch.stack(x, dim=2).unflatten(2, (self.grid, self.grid)) for x in (means, variances))
        return mean, (variance + 1e-5).sqrt()

    def cuts(self, size: int) -> list[slice]:
        """Where the grid cuts one side of a map: adaptive pooling's windows, which overlap where the side is no multiple of g."""
        return [slice(floor(k * size / self.grid), ceil((k + 1) * size / self.grid)) for k in range(self.grid)]

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H, W]` → scalar."""
        check_map(student_feature, "student")
        batch = len(student_feature)
        means, deviations = (target_tensor(target, name, batch) for name in ("mean", "deviation"))
        epoch = self.given(target, batch).get("epoch")
        projected = made(self.projector)(student_feature)
        with no_autocast(student_feature):
            mean, deviation = self.moments(projected)
            check_equal(mean, means)
            dtype = mean.dtype
            terms = self.ratio * (mean - means.to(dtype)).square() + (deviation - deviations.to(dtype)).square()
            decay = cosine_decay_factor(epoch, self.decay_from, self.epochs)
            return decay * terms.sum(dim=(1, 2, 3)).mean() / self.grid**2

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The moments. Raises ValueError for a map with a single position in a cell, which has no deviation."""
        student, teacher = map_shapes(student_shape, teacher_shape)
        # only this projector leaves the student's map at its size
        for shape in (teacher, student) if self.kind == "bottleneck" else (teacher,):
            rows, columns = (min(cut.stop - cut.start for cut in self.cuts(size)) for size in shape[1:])
            if rows * columns < 2:
                cell = f"a map of {shape[1]}×{shape[2]} has a single position in a cell"
                raise ValueError(f"grid={self.grid}: {cell}; take a smaller grid or a layer with a larger map")
        moments = (teacher[0], self.grid, self.grid)
        return {"mean": moments, "deviation": moments}
