"""The losses written out as double loops in float64: what the fast implementations must equal, value and gradient."""

import torch
from hypothesis import strategies as st
from torch import Tensor

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


@st.composite
def feature_pairs(draw, kinds=KINDS[:3]) -> tuple[Tensor, Tensor]:
    """Student and teacher features of one map size, channel counts apart."""
    batch, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    c_s, c_t = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 10_000))
    student = feature(seed, (batch, c_s, height, width), draw(st.sampled_from(kinds)))
    teacher = feature(seed + 1, (batch, c_t, height, width), draw(st.sampled_from(kinds)))
    return student, teacher


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


def attention(student: Tensor, teacher: Tensor, p: float) -> Tensor:
    """Mean squared difference of the unit attention maps."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image_s, image_t in zip(student, teacher, strict=True):
        maps = []
        for image in (image_s, image_t):
            _, height, width = image.shape
            values = [
                sum((image[c, i, j].abs() ** p for c in range(len(image))), torch.zeros(()).double())
                for i in range(height)
                for j in range(width)
            ]
            maps.append(unit(torch.stack(values)))
        for a, b in zip(*maps, strict=True):
            total, count = total + (a - b) ** 2, count + 1
    return total / count


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) of the softened distributions, mean over the images."""
    total = torch.zeros((), dtype=torch.float64)
    for z_s, z_t in zip(student, teacher, strict=True):
        p_s, p_t = [torch.exp(z / temperature) / torch.exp(z / temperature).sum() for z in (z_s, z_t)]
        for s, t in zip(p_s, p_t, strict=True):
            total = total + t * (torch.log(t) - torch.log(s))
    return total / len(student)


def value_and_gradient(function, student: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and df/dx in float64; a zero gradient where f does not depend on x."""
    x = student.clone().requires_grad_(True)
    value = function(x)
    (gradient,) = torch.autograd.grad(value, x, allow_unused=True) if value.requires_grad else (None,)
    return value.detach().double(), torch.zeros_like(student) if gradient is None else gradient.double()


def assert_equal(loss, student: Tensor, teacher: Tensor, expected, *, rtol: float = 1e-6, atol: float = 3e-7) -> None:
    """The loss in float32 equals the float64 reference `expected(student, teacher)`, value and gradient."""
    value, gradient = value_and_gradient(lambda x: expected(x, teacher), student)
    single = student.float().requires_grad_(True)
    target = loss.target(teacher.float(), tuple(student.shape[1:]))
    found = loss(single, target)
    assert found.dtype == torch.float32
    assert found.ndim == 0
    found.backward()
    assert single.grad is not None
    torch.testing.assert_close(found.detach().double(), value, rtol=rtol, atol=atol)
    norms = student.flatten(2).norm(dim=2)[:, :, None, None]  # a gradient grows as 1/‖x‖: compare it at unit length
    torch.testing.assert_close(single.grad * norms, gradient * norms, rtol=1e-5, atol=3 * atol)
