"""NST written out in float64, and the check that an implementation equals what is written out: value and gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nst.losses import TransferLoss


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


def mmd2(
    student: Tensor,
    teacher: Tensor,
    kernel: Callable[[Tensor, Tensor], Tensor] | str | float,
    own: bool = True,
    eps: float = 0,
) -> Tensor:
    """Equation 4, mean over the images; without `own` the teacher's own term is left out.

    `kernel` is a function of two tensors [..., N] of unit channels, or the rule for the Gaussian's σ².
    """
    values = []
    for image_s, image_t in zip(student, teacher, strict=True):
        sides = []
        for x in (image_s.flatten(1), image_t.flatten(1)):
            squared = x.square().sum(1, keepdim=True)
            sides.append(torch.where(squared > 0, x / torch.where(squared > 0, squared + eps, 1).sqrt(), 0))
        x, y = sides
        k = kernel
        if not callable(k):  # over ordered pairs, without gradient
            a, b = (x, y) if k == "pairs" else (torch.cat((x, y)), torch.cat((x, y)))
            apart = (a[:, None] - b).detach().square().sum(2).mean().clamp(min=1e-4)
            sigma2 = apart if isinstance(k, str) else k
            k = lambda a, b, sigma2=sigma2: torch.exp(-(a - b).square().sum(-1) / (2 * sigma2))  # noqa: E731
        means = [k(a[:, None], b[None]).mean() for a, b in ((x, x), (x, y), (y, y))]
        values.append(means[0] - 2 * means[1] + (means[2] if own else 0))
    return torch.stack(values).mean()


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
