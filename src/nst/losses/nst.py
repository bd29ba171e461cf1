"""Neuron Selectivity Transfer (Huang & Wang, 2017, arXiv 1707.01219): MMD between channel maps, cheapest implementation first."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from nst.losses.base import (
    Convention,
    Shape,
    TransferLoss,
    check_choice,
    check_map,
    check_numbers,
    laid_out_like,
    no_autocast,
    resize_key,
    resize_student,
    resize_teacher,
    shared_size,
    target_tensor,
    working_dtype,
)
from nst.losses.mmd import OFFICIAL_EPS, MeanMap, gram_target, mean_mmd, positions, quadratic_mmd
from nst.losses.mmd_stream import Gaussian, Polynomial, StreamedMMD, teacher_units


class NST(TransferLoss):
    """½ · MMD²(F_T, F_S) between the unit channel maps of teacher and student; mean over the batch.

    With x̂ = x/‖x‖₂ over the N = H·W positions and a kernel k (paper, eq. 4):

        MMD² = 1/C_T² Σ k(f̂_T, f̂_T') + 1/C_S² Σ k(f̂_S, f̂_S') − 2/(C_T C_S) Σ k(f̂_T, f̂_S)

    so that λ, the weight outside, is the paper's: L = H(y, p_S) + λ/2 · MMD² (eq. 3). A dead channel (‖x‖ ≤ 1e-12; in float16
    below its smallest normal number, 6.1e-5) is the zero vector, counts in C, and gets no gradient.

    Args:
        kernel: "linear" xᵀy; "polynomial" (xᵀy + c)^degree; "gaussian" exp(−‖x − y‖²/2σ²).
        degree: d of the polynomial kernel, at least 1. The paper uses 2.
        c: constant of the polynomial kernel. The paper uses 0.
        sigma2: σ² of the Gaussian kernel. The paper's "mean squared distance of the pairs" (recalled, unverified) can
            be read as the teacher–student pairs, "pairs", or as all pairs of the joint sample, a channel with itself
            included, "joint". Both are per image and carry no gradient. Or a positive number.
        convention: "paper" as above, the teacher's map brought to the student's size bilinearly. "official" (the
            authors' code): MMD² without the ½ and without the teacher–teacher term, so not 0 at S = T;
            x̂ = x/√(‖x‖² + 1e-10). "crd" (CRD's benchmark): MMD² without the ½; the larger map is average-pooled.
        implementation: which one computes it, all exactly; "auto" takes the cheapest for the shapes.
    """

    normalises_maps = True

    def __init__(
        self,
        kernel: Literal["linear", "polynomial", "gaussian"] = "polynomial",
        *,
        degree: int = 2,
        c: float = 0.0,
        sigma2: Literal["pairs", "joint"] | float = "pairs",
        convention: Convention = "paper",
        implementation: Literal["auto", "mean", "gram", "pairs", "stream"] = "auto",
    ) -> None:
        super().__init__()
        check_choice("kernel", kernel, ("linear", "polynomial", "gaussian"))
        check_choice("convention", convention, get_args(Convention))
        check_numbers(least=1, whole=True, degree=degree)
        check_numbers(c=c)
        if isinstance(sigma2, str):
            check_choice("sigma2", sigma2, ("pairs", "joint"))
        else:
            check_numbers(above=0, sigma2=sigma2)
        if kernel == "gaussian":
            self.kernel: Polynomial | Gaussian = Gaussian(sigma2)
        else:
            self.kernel = Polynomial(1, 0.0) if kernel == "linear" else Polynomial(degree, float(c))
        by_degree = {1: ("mean", "stream"), 2: ("gram", "pairs", "stream")}  # the preferred one first
        self.implementations: tuple[str, ...] = by_degree.get(getattr(self.kernel, "degree", 0), ("stream",))
        check_choice("implementation", implementation, ("auto", *self.implementations))
        self.implementation, self.convention = implementation, convention
        self.teacher_term = convention != "official"
        self.scale = 0.5 if convention == "paper" else 1.0
        self.c = self.kernel.c if isinstance(self.kernel, Polynomial) else 0.0
        self.eps = OFFICIAL_EPS if convention == "official" else 0.0

    def choose(self, student_channels: int, teacher_channels: int, positions: int) -> str:
        """The implementation with the fewest multiply-adds, forward and backward."""
        if self.implementation != "auto":
            return self.implementation
        if "gram" not in self.implementations:
            return self.implementations[0]
        by_gram = positions * (2 * student_channels + teacher_channels)
        by_pairs = 3 * student_channels**2 + teacher_channels**2 + 2 * student_channels * teacher_channels
        return "gram" if by_gram < by_pairs else "pairs"

    @property
    def target_key(self) -> str:
        """Unit maps, by their ε and how the feature is resized; kernels share them."""
        return f"unit-eps{self.eps!r}-{resize_key(self.convention)}"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """The tensor named like the implementation; that of "gram" comes with "gram_mean" unless c is 0. Shapes: `target_shapes`.

        Args:
            teacher_feature: `[B, C_T, H, W]`, any floating dtype and memory format.
            student_shape: (C_S, H, W) of the student's feature; decides map size and implementation. Default: the teacher's.

        Raises:
            ValueError: a feature that is not [B, C, H, W]; under "crd", different aspect ratios.
        """
        with no_autocast(teacher_feature):
            x = resize_teacher(teacher_feature, student_shape, self.convention).flatten(2)
            implementation = self.choose((student_shape or teacher_feature.shape[1:])[0], x.shape[1], x.shape[2])
            if implementation == "mean":
                return {"mean": MeanMap.apply(x, self.eps)}  # type: ignore[dict-item]
            if implementation != "gram":
                return {implementation: teacher_units(x, self.eps)}
            gram, mean = gram_target(x, self.c != 0, self.eps)
            return {"gram": gram} if mean is None else {"gram": gram, "gram_mean": mean}

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H, W]` → scalar, by the implementation that the target is of."""
        check_map(student_feature, "student")
        names = () if isinstance(target, Tensor) else target.keys()
        implementation = next((key for key in self.implementations if key in names), self.implementations[0])
        main, term = target_tensor(target, implementation, student_feature.shape[0]), self.teacher_term
        count = positions(main.shape[1]) if implementation == "gram" else main.shape[-1]
        with no_autocast(student_feature):
            x = resize_student(student_feature, count, self.convention).flatten(2)
            dtype = working_dtype(x)
            if implementation == "stream":
                value = StreamedMMD.apply(x, laid_out_like(main, x).to(dtype), self.kernel, term, self.eps)
            elif implementation == "mean":
                value = mean_mmd(x, main.to(dtype), self.c, term, self.eps)
            else:
                teacher = {"pairs": laid_out_like(main, x)} if implementation == "pairs" else target
                teacher = {key: value.to(dtype) for key, value in teacher.items()}
                value = quadratic_mmd(x, teacher, self.c, term, self.eps)
            return self.scale * value.mean()

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """Of the implementation's target, for shapes (C, H, W). Raises ValueError as `target` does."""
        height, width = shared_size(student_shape, teacher_shape, self.convention)
        n, c_t = height * width, teacher_shape[0]
        implementation = self.choose(student_shape[0], c_t, n)
        if implementation == "mean":
            return {"mean": (n,)}
        if implementation != "gram":
            return {implementation: (c_t, n)}
        gram = {"gram": (n * (n + 1) // 2,)}
        return {**gram, "gram_mean": (n,)} if self.c else gram
