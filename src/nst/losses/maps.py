"""Losses whose target is the teacher's map: FitNet, VID, MGD, SP."""

from collections.abc import Callable, Mapping
from functools import partial
from math import expm1, log, prod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import (
    Convention,
    Shape,
    TransferLoss,
    check_choice,
    check_equal,
    check_map,
    check_numbers,
    laid_out_like,
    made,
    map_shapes,
    no_autocast,
    random_keys,
    resize_key,
    resize_student,
    resize_teacher,
    shared_size,
    target_tensor,
    working_dtype,
)

Regressor = Literal["conv1x1", "conv_bn_relu", "none"]


class MapLoss(TransferLoss):
    """A loss whose target is the teacher's map: as it is (`own_size`), or at the size of the comparison by `convention`.

    `project(student_feature, teacher, **what inputs names)` brings the student's map to the teacher's shape, in the precision of
    autocast; `value(student, teacher)` compares the two in the working precision.
    """

    project: Callable[..., Tensor]
    value: Callable[..., Tensor]
    own_size: bool = True
    convention: str = "paper"

    @property
    def target_key(self) -> str:
        """The map, by how it is resized: all losses that take it as it is share it."""
        return "feature-as-it-is" if self.own_size else f"feature-{resize_key(self.convention)}"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"feature": [B, C_T, H, W]}`. Raises ValueError for other dimensions; under "crd", for different aspect ratios."""
        check_map(teacher_feature, "teacher")
        if self.own_size:
            return {"feature": teacher_feature}
        return {"feature": resize_teacher(teacher_feature, student_shape, self.convention)}

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H, W]` → scalar."""
        check_map(student_feature, "student")
        batch, dtype = len(student_feature), working_dtype(student_feature)
        teacher = target_tensor(target, "feature", batch)
        projected = self.project(student_feature, teacher, **self.given(target, batch))
        check_equal(projected, teacher)
        with no_autocast(student_feature):
            return self.value(projected.to(dtype), laid_out_like(teacher, projected).to(dtype))

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The teacher's map, at the size of the comparison."""
        student, teacher = map_shapes(student_shape, teacher_shape)
        size = teacher[1:] if self.own_size else shared_size(student, teacher, self.convention)
        return {"feature": (teacher[0], *size)}


class FitNet(MapLoss):
    """½ · mean of (F_T − r(F_S))² over channels, positions and the batch; r is a 1×1 convolution to C_T channels.

    Hints (Romero et al., FitNets, 2015), method FitNet of the paper's tables. r is made by `setup`, is trained with the student and is
    no part of it.

    Args:
        convention: "paper" and "official" (the official code has no FitNet): as above. "crd": without the ½ (CRD's
            benchmark, with regressor="conv_bn_relu"; Knowledge-Distillation-Zoo, with "none").
        regressor: "conv1x1" as above, at the student's map size. "conv_bn_relu", CRD's: a convolution to the teacher's map
            size, batch norm and ReLU; the convolution is 3×3 with stride 2 to half the size, a transposed 4×4 with stride 2 to twice
            the size, else of the size that leaves the teacher's map. "none": features are compared as they are.
    """

    def __init__(self, convention: Convention = "paper", regressor: Regressor = "conv1x1") -> None:
        super().__init__()
        check_choice("convention", convention, get_args(Convention))
        check_choice("regressor", regressor, get_args(Regressor))
        self.convention, self.kind, self.own_size = convention, regressor, regressor == "conv_bn_relu"
        self.scale = 1.0 if convention == "crd" else 0.5
        self.regressor: nn.Module = nn.Identity()

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make r. Raises ValueError for a map that "conv_bn_relu" cannot bring to the teacher's size."""
        if self.kind == "conv1x1":
            self.regressor = nn.Conv2d(student_shape[0], teacher_shape[0], 1)
        elif self.kind == "conv_bn_relu":
            self.regressor = conv_bn_relu(student_shape, teacher_shape)

    def project(self, student_feature: Tensor, teacher: Tensor) -> Tensor:
        """r(F_S), `[B, C_T, H, W]`."""
        regressed = self.regressor(student_feature)
        return regressed if self.own_size else resize_student(regressed, prod(teacher.shape[2:]), self.convention)

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of maps of one shape."""
        return self.scale * F.mse_loss(student, teacher)

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The teacher's map, at the size of the comparison. Raises ValueError where r does not fit."""
        shapes = super().target_shapes(student_shape, teacher_shape)
        if self.own_size:
            convolution(student_shape, teacher_shape)
        elif self.kind == "none" and student_shape[0] != teacher_shape[0]:
            channels = f"{student_shape[0]} (student) and {teacher_shape[0]} (teacher)"
            raise ValueError(f"regressor 'none' needs equal channels, not {channels}; 'conv1x1' takes any")
        return shapes


def convolution(student_shape: Shape, teacher_shape: Shape) -> Callable[[int, int], nn.Module]:
    """What brings the student's map to the teacher's size in CRD's benchmark, to be called with the channels.

    Raises:
        ValueError: the teacher's map is larger and not of twice the size.
    """
    (_, h_s, w_s), (_, h_t, w_t) = student_shape, teacher_shape
    if (h_s, w_s) == (2 * h_t, 2 * w_t):
        return partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)
    if (2 * h_s, 2 * w_s) == (h_t, w_t):
        return partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
    if h_s < h_t or w_s < w_t:
        sizes = f"from {h_s}×{w_s} (student) to {h_t}×{w_t} (teacher)"
        raise ValueError(f"'conv_bn_relu' cannot go {sizes}: only to twice, the same or less; 'conv1x1' can")
    return partial(nn.Conv2d, kernel_size=(1 + h_s - h_t, 1 + w_s - w_t))


def conv_bn_relu(student_shape: Shape, teacher_shape: Shape) -> nn.Module:
    """`[B, C_S, H_S, W_S]` → `[B, C_T, H_T, W_T]`."""
    first = convolution(student_shape, teacher_shape)(student_shape[0], teacher_shape[0])
    return nn.Sequential(first, nn.BatchNorm2d(teacher_shape[0]), nn.ReLU())


class VID(MapLoss):
    """mean over channels, positions and the batch of ½ · ((F_T − μ(F_S))² / σ² + log σ²): −log N(F_T; μ(F_S), σ²) less a constant.

    Variational information distillation (Ahn, Hu, Damianou, Lawrence & Dai, CVPR 2019). μ is three 1×1 convolutions without bias to C_T
    channels, a ReLU between each two; σ² = log(1 + e^α) + ε, one a channel. Both are made by `setup` and trained with the student. Not
    bounded below by 0, and at its minimum log σ² is the log of the error left.

    Args:
        initial_variance: σ² at the start.
        eps: ε, above 0 and below initial_variance.
        convention: maps of different size: "paper" interpolates the teacher's to the student's size, "crd" average-pools the
            larger one.
    """

    def __init__(
        self, initial_variance: float = 5.0, eps: float = 1e-5, convention: Literal["paper", "crd"] = "paper"
    ) -> None:
        super().__init__()
        check_numbers(above=0, initial_variance=initial_variance)
        check_numbers(above=0, below=initial_variance, eps=eps)
        check_choice("convention", convention, ("paper", "crd"))
        self.convention, self.own_size, self.eps = convention, False, eps
        excess = initial_variance - eps
        self.initial_alpha = log(expm1(excess)) if excess < 30 else excess
        self.mean: nn.Module | None = None

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make μ and α."""
        channels = teacher_shape[0]
        first, second, third = (nn.Conv2d(n, channels, 1, bias=False) for n in (student_shape[0], channels, channels))
        self.mean = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.alpha = nn.Parameter(torch.full((channels,), self.initial_alpha))

    def project(self, student_feature: Tensor, teacher: Tensor) -> Tensor:
        """μ(F_S), `[B, C_T, H, W]`."""
        return made(self.mean)(resize_student(student_feature, prod(teacher.shape[2:]), self.convention))

    def value(self, mean: Tensor, teacher: Tensor) -> Tensor:
        """Of maps of one shape."""
        variance = (F.softplus(self.alpha.to(mean.dtype)) + self.eps).view(1, -1, 1, 1)
        return 0.5 * (((mean - teacher).square() / variance).mean() + variance.log().mean())


class MGD(MapLoss):
    """Σ over channels and positions of (G(m ⊙ a(F_S)) − F_T)²; mean over the batch.

    Masked generative distillation (Yang, Li, Shao, Shi, Yuan & Yuan, ECCV 2022); for dense prediction its authors mask positions instead.
    m is 0 for a channel with the probability `mask`, else 1, drawn for each image and step; a is a 1×1 convolution to the teacher's
    channels where they differ, G is 3×3, ReLU, 3×3, at the teacher's channels. Both are trained with the student and are no part of it.
    Draws depend on the run's "seed" of the step and an image's index alone: ranks, accumulation and a continued run draw the same.

    Args:
        mask: probability that a channel is masked, 0 ≤ mask < 1.
    """

    inputs = ("index", "seed")

    def __init__(self, mask: float = 0.15) -> None:
        super().__init__()
        check_numbers(least=0, below=1, mask=mask)
        self.mask = float(mask)
        self.align: nn.Module = nn.Identity()
        self.generate: nn.Module | None = None

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make a and G."""
        channels = teacher_shape[0]
        if student_shape[0] != channels:
            self.align = nn.Conv2d(student_shape[0], channels, 1)
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.generate = nn.Sequential(first, nn.ReLU(), second)

    def project(self, student_feature: Tensor, teacher: Tensor, index: Tensor, seed: Tensor) -> Tensor:
        """G(m ⊙ a(F_S)), `[B, C_T, H, W]`, for `index` `[B]` int64 and a whole number `seed`."""
        aligned = self.align(student_feature)
        return made(self.generate)(aligned * self.kept(seed, index, teacher.shape[1]).to(aligned.dtype))

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of maps of one shape."""
        return (student - teacher).square().sum(dim=(1, 2, 3)).mean()

    def kept(self, seed: Tensor, index: Tensor, channels: int) -> Tensor:
        """Which channels are not masked, `[B, channels, 1, 1]` bool."""
        keys = random_keys(seed.to(index.device), index[:, None], channels)
        return (keys >= int(self.mask * 2**63))[:, :, None, None]

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The teacher's map. Raises ValueError for maps of different height and width."""
        student, teacher = map_shapes(student_shape, teacher_shape)
        if student[1:] != teacher[1:]:
            raise ValueError(f"MGD compares maps of one size: the student has {student}, the teacher {teacher}")
        return {"feature": teacher}


class SP(MapLoss):
    """‖Ĝ_T − Ĝ_S‖²_F / B² with G = F Fᵀ over the B images of the global batch, F `[B, C·H·W]`, and Ĝ its rows at unit length.

    Similarity-preserving knowledge distillation (Tung & Mori, ICCV 2019). Its target is the map as it is. Channels and map sizes may
    differ.
    """

    relational: ClassVar[bool] = True

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H_S, W_S]` → scalar; 0 for one image."""
        check_map(student_feature, "student")
        teacher, dtype = target_tensor(target, "feature", len(student_feature)), working_dtype(student_feature)
        with no_autocast(student_feature):
            with torch.no_grad():
                expected = similarities(laid_out_like(teacher, student_feature).to(dtype))
            return (similarities(student_feature.to(dtype)) - expected).square().mean()


def similarities(feature: Tensor) -> Tensor:
    """`[B, C, H, W]` → products of the images, rows at unit length, `[B, B]`; an image of zeros has a row of zeros.

    A channels-last map is read in its own order of values, which the products do not depend on: nothing is copied.
    """
    last = feature.stride(1) == 1 and feature.stride(-1) != 1
    rows = (feature.movedim(1, -1) if last else feature).flatten(1)
    products = rows @ rows.T
    # The result does not change with the scale of all: dividing by the peak keeps squares within float32.
    peak = products.detach().abs().amax()
    products = products / torch.where(peak > 0, peak, 1.0)
    squared = products.square().sum(dim=1, keepdim=True)
    return products / torch.where(squared > 0, squared, 1.0).sqrt()
