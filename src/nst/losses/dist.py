"""DIST, knowledge distillation from a stronger teacher (Huang, You, Wang, Qian & Xu, NeurIPS 2022)."""

from typing import Literal

import torch
from torch import Tensor

from nst.losses.base import check_choice, check_flags, check_numbers
from nst.losses.logits import LogitLoss

OFFICIAL_EPS = 1e-8


class DIST(LogitLoss):
    """β · (1 − mean over images of ρ(p_S, p_T)) + γ · (1 − mean over classes of ρ(p_S, p_T)), p = softmax(z / T).

    ρ is Pearson's correlation: of an image's probabilities over the classes in the first term (inter-class), of a class's
    probabilities over the images of the batch in the second (intra-class). It relates images, so it sees the global batch. The equation
    is that of the authors' code, without its 1e-8.

    The authors' setting: β = γ = 2 beside a cross-entropy of weight 1, T = 1 on ImageNet and T = 4 on CIFAR-100 (recalled
    from the paper, unverified; β, γ, T are arguments of their code, whose defaults are 1).

    Args:
        temperature: T > 0.
        beta, gamma: at least 0.
        convention: "paper": as above; where a side is constant, ρ is not defined and counts as 0, without gradient. "official":
            times T², and 1e-8 added to the product of the deviations.
        standardize: logits of zero mean and unit deviation first (Sun et al., 2024).
    """

    relational = True

    def __init__(
        self,
        temperature: float = 4.0,
        beta: float = 2.0,
        gamma: float = 2.0,
        convention: Literal["paper", "official"] = "paper",
        standardize: bool = False,
    ) -> None:
        super().__init__()
        check_numbers(above=0, temperature=temperature)
        check_numbers(least=0, beta=beta, gamma=gamma)
        check_choice("convention", convention, ("paper", "official"))
        check_flags(standardize=standardize)
        self.temperature, self.beta, self.gamma, self.standardize = float(temperature), beta, gamma, standardize
        self.scale = self.temperature**2 if convention == "official" else 1.0
        self.eps = OFFICIAL_EPS if convention == "official" else 0.0

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of logits `[B, classes]` of the global batch."""
        p_s, p_t = ((z / self.temperature).softmax(dim=1) for z in (student, teacher))
        inter = 1 - pearson(p_s, p_t, self.eps).mean()
        intra = 1 - pearson(p_s.T, p_t.T, self.eps).mean()
        return self.scale * (self.beta * inter + self.gamma * intra)


def pearson(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Correlation of the rows of `[R, N]`, `[R]`; 0 without gradient where a row is constant but for rounding."""
    centred_a, length_a = centre(a)
    centred_b, length_b = centre(b)
    product = length_a * length_b
    constant = product == 0
    return torch.where(constant, 0.0, (centred_a * centred_b).sum(dim=1)) / (torch.where(constant, 1.0, product) + eps)


def centre(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less their mean, and their lengths; both 0 where that is no more than rounding."""
    centred = x - x.mean(dim=1, keepdim=True)
    squared = centred.square().sum(dim=1)
    noise = squared <= (4 * torch.finfo(x.dtype).eps) ** 2 * x.detach().square().sum(dim=1)
    length = torch.where(noise, 1.0, squared).sqrt()
    return torch.where(noise[:, None], 0.0, centred), torch.where(noise, 0.0, length)
