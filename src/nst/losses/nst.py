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
from nst.losses.mmd import OFFICIAL_EPS, gram_target, mean_map, mean_mmd, positions, quadratic_mmd
from nst.losses.mmd_stream import Gaussian, Polynomial, streamed_mmd, teacher_units

Implementation = Literal["mean", "gram", "pairs", "stream"]
"""A target holds the tensor named like its implementation; that of "gram" may hold "gram_mean" besides."""


class NST(TransferLoss):
    """½ · MMD²(F_T, F_S) between the unit channel maps of teacher and student; mean over the batch.

    With x̂ = x/‖x‖₂ over the N = H·W positions and a kernel k (paper, eq. 4):

        MMD² = 1/C_T² Σ k(f̂_T, f̂_T') + 1/C_S² Σ k(f̂_S, f̂_S') − 2/(C_T C_S) Σ k(f̂_T, f̂_S)

    so that λ, the weight outside, is the paper's: L = H(y, p_S) + λ/2 · MMD² (eq. 3). λ = 50 for the polynomial kernel
    is the official code's; 50 (linear) and 100 (Gaussian) are recalled from the paper, unverified. A dead channel
    (‖x‖ ≤ 1e-12; in float16 below its smallest normal number, 6.1e-5) is the zero vector, counts in C, and gets no
    gradient.

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

    Raises:
        ValueError: an argument out of range, or an implementation that the kernel does not have.
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
        check_choice("convention", convention, get_args(Convention))
        self.kernel = make_kernel(kernel, degree, c, sigma2)
        if isinstance(self.kernel, Gaussian) or self.kernel.degree > 2:
            self.implementations: tuple[Implementation, ...] = ("stream",)
        else:  # the preferred one first
            self.implementations = ("mean", "stream") if self.kernel.degree == 1 else ("gram", "pairs", "stream")
        if implementation != "auto" and implementation not in self.implementations:
            raise ValueError(
                f"implementation is {implementation!r}; for this kernel it must be auto or one of {', '.join(self.implementations)}"
            )
        self.implementation: Implementation | Literal["auto"] = implementation
        self.convention = convention
        self.teacher_term = convention != "official"
        self.scale = 0.5 if convention == "paper" else 1.0
        self.needs_mean = isinstance(self.kernel, Polynomial) and self.kernel.c != 0  # by the Gram implementation
        self.eps = OFFICIAL_EPS if convention == "official" else 0.0

    def choose(self, student_channels: int, teacher_channels: int, positions: int) -> Implementation:
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
        """The target of the teacher's `[B, C_T, H, W]`; see `target_shapes` for its shapes.

        Args:
            teacher_feature: any floating dtype and memory format.
            student_shape: (C_S, H, W) of the student's feature; decides map size and implementation. Default: the teacher's.

        Raises:
            ValueError: a feature that is not [B, C, H, W]; under "crd", different aspect ratios.
        """
        with no_autocast(teacher_feature):
            x = resize_teacher(teacher_feature, student_shape, self.convention).flatten(2)
            implementation = self.choose((student_shape or teacher_feature.shape[1:])[0], x.shape[1], x.shape[2])
            if implementation == "mean":
                return {"mean": mean_map(x, self.eps)}
            if implementation != "gram":
                return {implementation: teacher_units(x, self.eps)}
            gram, mean = gram_target(x, self.needs_mean, self.eps)
            return {"gram": gram} if mean is None else {"gram": gram, "gram_mean": mean}

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H, W]` → scalar. Raises ValueError when the target is of another loss, map size or batch."""
        check_map(student_feature, "student")
        with no_autocast(student_feature):
            names = () if isinstance(target, Tensor) else target.keys()
            supported: list[Implementation] = [key for key in self.implementations if key in names]
            implementation = supported[0] if supported else self.implementations[0]
            main = target_tensor(target, implementation, student_feature.shape[0])
            count = positions(main.shape[1]) if implementation == "gram" else main.shape[-1]
            x = resize_student(student_feature, count, self.convention).flatten(2)
            kernel, term, eps, dtype = self.kernel, self.teacher_term, self.eps, working_dtype(x)
            c = kernel.c if isinstance(kernel, Polynomial) else 0.0
            if implementation == "stream":
                value = streamed_mmd(x, laid_out_like(main, x).to(dtype), kernel, term, eps)
            elif implementation == "mean":
                value = mean_mmd(x, main.to(dtype), c, term, eps)
            else:
                if implementation == "pairs":
                    teacher = {"units": laid_out_like(main, x).to(dtype)}
                else:
                    teacher = {key: value.to(dtype) for key, value in target.items()}
                value = quadratic_mmd(x, teacher, c, term, eps)
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
        return {**gram, "gram_mean": (n,)} if self.needs_mean else gram


def make_kernel(name: str, degree: int, c: float, sigma2: str | float) -> Polynomial | Gaussian:
    """The kernel of these arguments; raises ValueError when one is out of range."""
    if name == "linear":
        return Polynomial(1, 0.0)
    if name == "polynomial":
        check_numbers(least=1, whole=True, degree=degree)
        check_numbers(c=c)
        return Polynomial(degree, float(c))
    if name != "gaussian":
        raise ValueError(f"kernel is {name!r}; it must be linear, polynomial or gaussian")
    if sigma2 == "pairs" or sigma2 == "joint":
        return Gaussian(sigma2)
    if isinstance(sigma2, str):
        raise ValueError(f"sigma2 is {sigma2!r}; it must be pairs, joint or a positive number")
    check_numbers(above=0, sigma2=sigma2)
    return Gaussian(float(sigma2))
