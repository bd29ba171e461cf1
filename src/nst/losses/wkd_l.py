"""WKD-L, distillation by the discrete Wasserstein distance (Lv, Yang & Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation, NeurIPS 2024)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import (
    Input,
    LogitLoss,
    LossSpec,
    Shape,
    check_number,
    cosine_decay_factor,
    expectation,
    log_softmax_without,
    no_autocast,
    target_tensor,
    working_dtype,
)

EPS = 1e-8
"""Added to the costs and to the divisors of a Sinkhorn step, as in the authors' code."""
CHUNK_BYTES = 64 << 20
"""Of the centred Gram matrices of all classes that are held at a time."""


class WKDL(LogitLoss):
    """−p_T[y] · log p_S[y] + λ(e) · Σ_ij P_ij · C_ij; mean over the batch.

    y is the image's label, p = softmax(z). P is the entropic transport plan between the softmax(z / T) of student and teacher over the
    classes but y: `steps` Sinkhorn steps from u = 1 / (classes − 1) with K = exp(−C / regularization), v = p̂_T / (Kᵀu + 1e-8) and
    u = p̂_S / (K v + 1e-8), P = diag(u) K diag(v); the gradient goes through the steps. The cost between two classes is
    C = 1 − exp(−κ · (1 − CKA)) + 1e-8, CKA that of the teacher's features of their images (`class_similarity`). λ(e) is `transport`
    until epoch `decay_from`, then falls to 0 in the last epoch by half a cosine.

    One cost matrix serves all images, so a step is a product with `[classes, classes]`, and no image has a matrix of its own.
    The authors' setting (their code), beside a cross-entropy of weight 1: on CIFAR-100 λ 600, T 8 (ResNet-32x4 → 8x4) or λ 200, T 6
    (WRN-40-2 → ShuffleNetV1), κ 1, decay from epoch 150 of 240; on ImageNet λ 30, κ 1 (ResNet-34 → 18) or λ 25, κ 2
    (ResNet-50 → MobileNetV1), T 2, decay from the first epoch. Their code reads the similarities from a file; that they are CKA over
    the images of both classes in order is recalled from the paper, unverified.

    Args:
        temperature: T > 0.
        transport: λ, at least 0.
        sharpness: κ > 0.
        regularization: of the transport plan, more than 0.
        steps: Sinkhorn steps, at least 1.
        decay_from: epochs before λ falls, at least 0.
        epochs: of the run, for the end of the decay; null: λ is constant.

    Raises:
        ValueError: an argument out of range.
    """

    inputs: ClassVar[tuple[Input, ...]] = ("labels", "epoch")
    teacher_layer: ClassVar[str | None] = "pooled"
    cost: Tensor

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
        super().__init__(standardize=False)
        for name, value in (
            ("temperature", temperature),
            ("sharpness", sharpness),
            ("regularization", regularization),
            *([] if epochs is None else [("epochs", epochs)]),
        ):
            check_number(name, value, above=0)
        for name, value in (("transport", transport), ("decay_from", decay_from)):
            check_number(name, value, least=0)
        check_number("steps", steps, least=1, whole=True)
        self.temperature, self.transport, self.sharpness = float(temperature), transport, sharpness
        self.regularization, self.steps = regularization, steps
        self.decay_from, self.epochs = decay_from, epochs

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the cost matrix, NaN until `init_teacher`."""
        self.register_buffer("cost", torch.full((teacher_shape[0], teacher_shape[0]), torch.nan))

    def teacher_statistics(self, features: Tensor, labels: Tensor) -> Tensor:
        """CKA of the classes, `[classes, classes]`; see `class_similarity`."""
        return class_similarity(features, labels, len(self.cost))

    def init_teacher(self, statistics: Tensor) -> None:
        """Set the cost matrix from the CKA of the classes."""
        cost = 1 - torch.exp(-self.sharpness * (1 - statistics.double()))
        self.cost.copy_(cost.relu() + EPS)

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Student logits `[B, classes]` → scalar.

        Args:
            target: "logits" `[B, classes]`, "labels" `[B]` int64, "epoch", the epochs done so far.

        Raises:
            ValueError: before `setup` and `init_teacher`; the class counts differ, or labels or epoch are missing.
        """
        labels = target_tensor(target, "labels", student_feature.shape[0])
        decay = cosine_decay_factor(target, self.decay_from, self.epochs)
        if not hasattr(self, "cost"):
            raise ValueError(
                "WKD-L needs a cost between the classes: call setup(student_shape, teacher_shape) and "
                "init_teacher(teacher_statistics(features, labels)) first"
            )
        with no_autocast(student_feature):
            student, teacher = self.read(student_feature, target)
            index, own = labels[:, None], F.one_hot(labels, student.shape[1]).bool()
            log_s = F.log_softmax(student, dim=1).gather(1, index)
            on_target = expectation(F.softmax(teacher, dim=1).gather(1, index), log_s)
            p_s, p_t = (log_softmax_without(z / self.temperature, own).exp() for z in (student, teacher))
            cost = self.cost.to(student.dtype)
            start = (~own).to(student.dtype) / max(1, student.shape[1] - 1)
            distance = transport_cost(p_s, p_t, cost, start, self.regularization, self.steps)
            return (decay * self.transport * distance - on_target).mean()

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the logits. Memory: what autograd keeps of each step, 6 rows, and the shared cost matrix apart."""
        logits = super().spec(student_shape, teacher_shape).target
        return LossSpec("soft targets", logits, 4 * teacher_shape[0] * (6 * self.steps + 12))


def transport_cost(
    source: Tensor, goal: Tensor, cost: Tensor, start: Tensor, regularization: float, steps: int
) -> Tensor:
    """Cost of the entropic transport plan of each row, `[B]`.

    Args:
        source, goal: `[B, N]` probabilities; classes with 0 in both have no part.
        cost: `[N, N]`, from source to goal.
        start: the first u, `[B, N]`.
    """
    kernel = torch.exp(-cost / regularization)
    u, v = start, start
    for _ in range(steps):
        v = goal / (u @ kernel + EPS)
        u = source / (v @ kernel.T + EPS)
    return (u * (v @ (kernel * cost).T)).sum(dim=1)


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
        raise ValueError(
            f"class {int(counts.argmin())} has {count} training images; a similarity of classes needs 2 of each"
        )
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
