"""SP, RKD, PKT and CC written out as loops over images in float64."""

import torch
from torch import Tensor


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum()


def pooled(x: Tensor) -> list[Tensor]:
    return [image.flatten(1).sum(1) / image[0].numel() for image in x] if x.ndim == 4 else [*x]


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    total = zero()
    for i in range(len(student)):
        rows = []
        for x in (student, teacher):
            row = torch.stack([dot(x[i], x[j]) for j in range(len(x))])
            norm = (row * row).sum()
            rows.append(row / norm.sqrt() if norm > 0 else row)
        total = total + ((rows[0] - rows[1]) ** 2).sum()
    return total / len(student) ** 2


def pkt(student: Tensor, teacher: Tensor, own: bool, eps: float) -> Tensor:
    total, count = zero(), len(student)
    for i in range(count):
        probabilities = []
        for x in (pooled(student), pooled(teacher)):
            unit = [v / (dot(v, v).sqrt() + eps) for v in x]
            kernel = {j: (dot(unit[i], unit[j]) + 1) / 2 for j in range(count) if own or j != i}
            whole = sum(kernel.values(), zero())
            probabilities.append({j: value / whole for j, value in kernel.items()})
        s, t = probabilities
        total = total + sum((t[j] * torch.log((t[j] + eps) / (s[j] + eps)) for j in t), zero())
    return total / count**2


def huber(x: Tensor) -> Tensor:
    return 0.5 * x * x if x.abs() < 1 else x.abs() - 0.5


def distance(x: Tensor, y: Tensor) -> Tensor:
    squared = dot(x - y, x - y)
    return squared.sqrt() if squared > 0 else squared


def rkd(student: Tensor, teacher: Tensor, w_d: float, w_a: float, every: bool) -> Tensor:
    sides, count = (pooled(student), pooled(teacher)), len(student)
    index = range(count)
    means = [sum((distance(x[i], x[j]) for i in index for j in index), zero()) / (count * (count - 1)) for x in sides]
    pairs = [(i, j) for i in index for j in index if every or i != j]
    total = zero()
    for i, j in pairs:
        d_s, d_t = (distance(x[i], x[j]) / mean for x, mean in zip(sides, means, strict=True))
        total = total + w_d * huber(d_s - d_t) / len(pairs)
    triples = [(i, j, k) for i in index for j in index for k in index if every or len({i, j, k}) == 3]
    for i, j, k in triples:
        a_s, a_t = (cosine(x[i] - x[j], x[k] - x[j]) for x in sides)
        total = total + w_a * huber(a_s - a_t) / len(triples)
    return total


def cosine(x: Tensor, y: Tensor) -> Tensor:
    lengths = dot(x, x) * dot(y, y)
    return dot(x, y) / lengths.sqrt() if lengths > 0 else zero()
