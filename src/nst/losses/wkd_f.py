"""WKD-F, distillation by the Wasserstein distance of Gaussians (Lv, Yang & Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation, NeurIPS 2024)."""

from collections.abc import Mapping
from math import ceil, floor
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from nst.losses.base import (
    Input,
    LossSpec,
    Shape,
    TransferLoss,
    check_choice,
    check_convention,
    check_map,
    check_number,
    check_shape,
    cosine_decay_factor,
    no_autocast,
    target_tensor,
    working_dtype,
)
from nst.losses.fitnet import conv_bn_relu

Projector = Literal["conv_bn_relu", "bottleneck"]
HIDDEN = 256
EPS = 1e-5
"""Added to a variance before its root."""


class WKDF(TransferLoss):
    """λ(e)/λ · 1/g² · Σ over channels and cells of ρ · (μ_S − μ_T)² + (σ_S − σ_T)²; mean over the batch.

    The map is cut into g × g cells as adaptive pooling does; μ is a channel's mean over a cell's positions and
    σ = √(variance + 1e-5) its deviation: the 2-Wasserstein distance of two Gaussians with diagonal covariance, ρ before the
    means. The student's map goes through a projector to the teacher's channels first. The factor λ(e)/λ is 1 until epoch `decay_from`,
    then falls to 0 in the last epoch by half a cosine; λ is the term's weight.

    The authors' setting (their code), beside a cross-entropy of weight 1: on CIFAR-100 λ 0.08, ρ 4, g 1 (ResNet-32x4 → 8x4) or λ 0.3, ρ 3,
    g 4 (WRN-40-2 → ShuffleNetV1), decay from epoch 150 of 240, projector conv_bn_relu; on ImageNet λ 0.02 (ResNet-34 → 18) or 0.005
    with decay from epoch 30 (ResNet-50 → MobileNetV1), ρ 2, g 4, projector bottleneck.

    Args:
        ratio: ρ, at least 0.
        grid: g, at least 1; a cell needs two positions of the projected map and of the teacher's.
        projector: "conv_bn_relu": FitNet's, a 1×1 convolution with batch norm and ReLU where the maps have one size. "bottleneck": 1×1 to 256
            channels, 3×3, 1×1, batch norm and ReLU at the end.
        decay_from: epochs before λ falls, at least 0.
        epochs: of the run, for the end of the decay; null: λ is constant.
        convention: "paper": the variance is divided by the number of positions (by a summary of the paper). "official": by one less.

    Raises:
        ValueError: an argument out of range; in `setup`, maps that the projector cannot bring together.
    """

    inputs: ClassVar[tuple[Input, ...]] = ("epoch",)

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
        check_number("ratio", ratio, least=0)
        check_number("grid", grid, least=1, whole=True)
        check_choice("projector", projector, get_args(Projector))
        check_number("decay_from", decay_from, least=0)
        if epochs is not None:
            check_number("epochs", epochs, above=0)
        check_convention(convention, ("paper", "official"))
        self.ratio, self.grid, self.kind = ratio, grid, projector
        self.decay_from, self.epochs = decay_from, epochs
        self.correction = 1 if convention == "official" else 0
        self.projector: nn.Module | None = None

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the projector."""
        if self.kind == "conv_bn_relu":
            self.projector = conv_bn_relu(student_shape, teacher_shape)
            return
        channels = teacher_shape[0]
        self.projector = nn.Sequential(
            nn.Conv2d(student_shape[0], HIDDEN, 1),
            nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1),
            nn.Conv2d(HIDDEN, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    @property
    def target_key(self) -> str:
        """The moments of a grid, by the divisor of the variance."""
        return f"moments-{self.grid}-{self.correction}"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"mean", "deviation"}`, each `[B, C_T, g, g]`. Raises ValueError for a feature that is no map, or too small for the grid."""
        check_map(teacher_feature, "teacher")
        with no_autocast(teacher_feature):
            mean, deviation = self.moments(teacher_feature, "teacher")
        return {"mean": mean, "deviation": deviation}

    def moments(self, feature: Tensor, owner: str) -> tuple[Tensor, Tensor]:
        """Means and deviations over the cells of a map `[B, C, H, W]`, each `[B, C, g, g]` in the working precision."""
        self.check_grid(tuple(feature.shape[1:]), owner)
        feature = feature.to(working_dtype(feature))
        means, variances = [], []
        for rows in self.cuts(feature.shape[2]):
            for columns in self.cuts(feature.shape[3]):
                cell = feature[:, :, rows, columns]
                mean = cell.mean(dim=(2, 3), keepdim=True)
                squares = (cell - mean).square().sum(dim=(2, 3))  # faster here than torch.var, forward and backward
                means.append(mean.flatten(1))
                variances.append(squares / (cell.shape[2] * cell.shape[3] - self.correction))
        mean, variance = (torch.stack(x, dim=2).unflatten(2, (self.grid, self.grid)) for x in (means, variances))
        return mean, (variance + EPS).sqrt()

    def cuts(self, size: int) -> list[slice]:
        """Where the grid cuts one side of a map: adaptive pooling's windows, which overlap where the side is no multiple of g."""
        return [slice(floor(k * size / self.grid), ceil((k + 1) * size / self.grid)) for k in range(self.grid)]

    def check_grid(self, shape: Shape, owner: str) -> None:
        """Raises ValueError if a cell has a single position: it has no deviation."""
        check_shape(shape, owner)
        rows, columns = (min(cut.stop - cut.start for cut in self.cuts(size)) for size in shape[1:])
        if rows * columns < 2:
            raise ValueError(
                f"the {owner}'s map of {shape[1]}×{shape[2]} has a single position in a cell of a {self.grid}×{self.grid} grid, and so no "
                "deviation: take a smaller grid, or a layer with a larger map"
            )

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H, W]` → scalar.

        Args:
            target: "mean" and "deviation" `[B, C_T, g, g]`, "epoch", the epochs done so far.

        Raises:
            ValueError: before `setup`; the target is of another grid or batch, or the epoch is missing.
        """
        check_map(student_feature, "student")
        means, deviations = (target_tensor(target, name, len(student_feature)) for name in ("mean", "deviation"))
        decay = cosine_decay_factor(target, self.decay_from, self.epochs)
        if self.projector is None:
            raise ValueError("WKD-F learns a projector: call setup(student_shape, teacher_shape) first")
        projected = self.projector(student_feature)
        with no_autocast(student_feature):
            mean, deviation = self.moments(projected, "student")
            if mean.shape != means.shape:
                raise ValueError(
                    f"the student's moments have shape {tuple(mean.shape)}, the teacher's {tuple(means.shape)}; they need one grid "
                    "and one number of channels"
                )
            dtype = mean.dtype
            terms = self.ratio * (mean - means.to(dtype)).square() + (deviation - deviations.to(dtype)).square()
            return decay * terms.sum(dim=(1, 2, 3)).mean() / self.grid**2

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the moments. Memory: the projector's maps and their gradients."""
        check_shape(student_shape, "student")
        self.check_grid(teacher_shape, "teacher")
        if self.kind == "bottleneck":  # the other projector brings the student's map to the teacher's size
            self.check_grid(student_shape, "student")
        height, width = (student_shape if self.kind == "bottleneck" else teacher_shape)[1:]
        channels, positions = teacher_shape[0], height * width
        moments = (channels, self.grid, self.grid)
        hidden = 3 * HIDDEN if self.kind == "bottleneck" else 0
        return LossSpec("moments", {"mean": moments, "deviation": moments}, 8 * positions * (5 * channels + hidden))
