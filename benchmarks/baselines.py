"""NST as it is usually written, to measure against: every pair broadcast over positions, and pairs by one product."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Pairs = Callable[[Tensor, Tensor], Tensor]


def broadcast_dot(a: Tensor, b: Tensor) -> Tensor:
    """x·y for all pairs through a tensor of `[B, C_a, C_b, N]`."""
    return (a.unsqueeze(2) * b.unsqueeze(1)).sum(dim=3)


def broadcast_distance(a: Tensor, b: Tensor) -> Tensor:
    """‖x − y‖² for all pairs through a tensor of `[B, C_a, C_b, N]`."""
    return (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(dim=3)


def product_dot(a: Tensor, b: Tensor) -> Tensor:
    """x·y for all pairs by a batched matrix product."""
    return torch.bmm(a, b.transpose(1, 2))


def product_distance(a: Tensor, b: Tensor) -> Tensor:
    """‖x − y‖² of unit vectors for all pairs by a batched matrix product."""
    return 2 - 2 * torch.bmm(a, b.transpose(1, 2))


def three_sums(student: Tensor, teacher: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """½ · MMD² as its three double sums, by autograd; `[B, C, H, W]` each."""
    s, t = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)
    return 0.5 * (kernel(t, t).mean() + kernel(s, s).mean() - 2 * kernel(s, t).mean())


def linear(student: Tensor, teacher: Tensor, dot: Pairs) -> Tensor:
    """½ · MMD² of the linear kernel."""
    return three_sums(student, teacher, dot)


def polynomial(student: Tensor, teacher: Tensor, dot: Pairs) -> Tensor:
    """½ · MMD² of the kernel (x·y)²."""
    return three_sums(student, teacher, lambda a, b: dot(a, b).square())


def gaussian(student: Tensor, teacher: Tensor, distance: Pairs) -> Tensor:
    """½ · MMD² of the Gaussian kernel, σ² the mean squared distance of teacher–student pairs of each image."""
    s, t = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)
    cross = distance(s, t)
    sigma2 = cross.detach().mean(dim=(1, 2), keepdim=True)

    def mean(squared: Tensor) -> Tensor:
        return torch.exp(-squared / (2 * sigma2)).mean()

    return 0.5 * (mean(distance(t, t)) + mean(distance(s, s)) - 2 * mean(cross))
