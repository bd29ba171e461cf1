"""The losses written out as double loops in float64: what the fast implementations must equal, value and gradient."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nst.losses import TransferLoss

KINDS = ("signed", "relu", "dead channels", "constant")


def feature(seed: int, shape: tuple[int, int, int, int], kind: str) -> Tensor:
    """A float64 feature [B, C, H, W] of some kind, its values exact in float32."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "relu":
        x = (x + 0.3).relu()
    elif kind == "dead channels":
        x[:, :: max(2, shape[1] // 2)] = 0
    elif kind == "constant":
        x = torch.full(shape, 1.5)
    return x.double()


def feature_pairs(like: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Student and teacher features of one map size, channel counts apart; `like`: of at least 2 × 2 channels and 4 positions."""
    least = 2 if like else 1
    for seed in range(12):
        size = (least + seed % 3, least + seed // 3 % 3)
        sides = (seed, least + seed % 5, KINDS[seed % 3]), (seed + 100, least + 3 * seed % 4, KINDS[seed // 4])
        student, teacher = (feature(own, (2, channels, *size), kind) for own, channels, kind in sides)
        yield student, teacher


def unit(x: Tensor, eps: float = 0.0) -> Tensor:
    """x / √(‖x‖² + eps), zero for a zero channel."""
    squared = (x * x).sum()
    return x / torch.sqrt(squared + eps) if squared > 0 else torch.zeros_like(x)


def polynomial(degree: int, c: float):
    return lambda x, y: (torch.dot(x, y) + c) ** degree


def gaussian(sigma2: Tensor | float):
    return lambda x, y: torch.exp(-((x - y) ** 2).sum() / (2 * sigma2))


def mean_kernel(kernel, xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x in xs:
        for y in ys:
            total = total + kernel(x, y)
    return total / (len(xs) * len(ys))


def sigma2_of(rule: str | float, xs: list[Tensor], ys: list[Tensor]) -> float:
    """σ² by its rule, over ordered pairs, as a plain number (no gradient)."""
    if not isinstance(rule, str):
        return rule
    pairs = [(x, y) for x in xs for y in ys] if rule == "pairs" else [(x, y) for x in xs + ys for y in xs + ys]
    return max(sum(((x - y).detach() ** 2).sum().item() for x, y in pairs) / len(pairs), 1e-4)


def mmd2(student: Tensor, teacher: Tensor, kernel, teacher_term: bool = True, eps: float = 0.0) -> Tensor:
    """Equation 4, mean over the images. `kernel` is a function of two vectors, or a rule for σ²."""
    total = torch.zeros((), dtype=torch.float64)
    for image_s, image_t in zip(student, teacher, strict=True):
        xs = [unit(channel.flatten(), eps) for channel in image_s]
        ys = [unit(channel.flatten(), eps) for channel in image_t]
        k = kernel if callable(kernel) else gaussian(sigma2_of(kernel, xs, ys))
        value = mean_kernel(k, xs, xs) - 2 * mean_kernel(k, xs, ys)
        total = total + value + (mean_kernel(k, ys, ys) if teacher_term else 0.0)
    return total / len(student)


def value_and_gradient(function, student: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and df/dx in float64; a zero gradient where f does not depend on x."""
    x = student.clone().requires_grad_(True)
    value = function(x)
    (gradient,) = torch.autograd.grad(value, x, allow_unused=True) if value.requires_grad else (None,)
    return value.detach().double(), torch.zeros_like(student) if gradient is None else gradient.double()


def check(
    make: Callable[[], TransferLoss],
    expected: Callable[[Any, Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    extra: dict[str, Tensor] | None = None,
    rough: float = 2e-5,
    fine: float = 1e-9,
) -> None:
    """A loss in float64 and, roughly, in float32 equals `expected(loss, student)`: value, gradients of the feature and of what it learns."""
    shapes = tuple(student.shape[1:]), tuple(teacher.shape[1:])
    wanted: list[Tensor] = []
    for dtype, tolerance in ((torch.float64, fine), (torch.float32, rough)):
        torch.manual_seed(0)
        loss = make()
        loss.setup(*shapes)
        loss.to(dtype)
        target = loss.target(teacher.to(dtype), shapes[0])
        given = target | {name: extra[name] for name in loss.inputs if extra}
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}

        def step(function: Any, x: Tensor, own: TransferLoss = loss) -> list[Tensor]:
            x = x.detach().requires_grad_(True)
            value = function(x) + 0 * x.sum()  # of a dead feature the reference has no gradient at all
            return [value.detach(), *torch.autograd.grad(value, [x, *own.parameters()], materialize_grads=True)]

        wanted = wanted or step(lambda x, own=loss: expected(own, x), student)
        found = step(lambda x, own=loss, given=given: own(x, given), student.to(dtype))
        assert found[0].dtype == dtype
        assert abs(found[0] - wanted[0]) <= tolerance * (1 + abs(wanted[0]))
        for gradient, slope in zip(found[1:], wanted[1:], strict=True):
            assert (gradient - slope).norm() <= tolerance * (1 + 10 * slope.norm())
