"""Losses on logits and on maps of classes, WKD-F, MGD and OFA-KD equal their equations written out in float64."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from tests.losses.reference import check, value_and_gradient
from torch import Tensor

from nst.losses import ABKD, CATKD, DIST, DKD, KD, MGD, NKD, OFA, RLD, SDD, TTM, WKDF, WKDL, CrossEntropy
from nst.losses.wkd import class_similarity

CLASSES, EPOCHS = 5, 12
Extra = dict[str, Tensor]
softmax = partial(torch.softmax, dim=0)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p[p > 0] * torch.log(p[p > 0] / q[p > 0])).sum()


def without(z: Tensor, y: int) -> Tensor:
    return torch.cat((z[:y], z[y + 1 :]))


def ramp(extra: Extra, warmup: float) -> float:
    return min(1.0, (math.floor(extra["epoch"]) + 1) / warmup) if warmup else 1.0


def by_image(row: Any, warmup: float = 0) -> Any:
    """A loss as the mean of `row(student's logits, teacher's logits, label)` over the images, rising."""
    return lambda s, t, extra: ramp(extra, warmup) * torch.stack([*map(row, s, t, extra["labels"].tolist())]).mean()


def ttm(gamma: float, weighted: bool) -> Any:
    def row(s: Tensor, t: Tensor, y: int) -> Tensor:
        power = softmax(t) ** gamma
        return (power.sum() if weighted else 1.0) * kl(power / power.sum(), softmax(s))

    return by_image(row)


def kd(t_: float, power: float = 2) -> Any:
    return by_image(lambda s, t, y: t_**power * kl(softmax(t / t_), softmax(s / t_)))


def dist(t_: float, beta: float, gamma: float, power: float, eps: float) -> Any:
    def mean(student: Tensor, teacher: Tensor, extra: Extra) -> Tensor:
        means = []
        for dim in (1, 0):  # over the classes of an image, over the images
            a, b = ((p := (z / t_).softmax(1)) - p.mean(dim, keepdim=True) for z in (student, teacher))
            means.append(((a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + eps)).mean())
        return t_**power * (beta * (1 - means[0]) + gamma * (1 - means[1]))

    return mean


def standardised(expected: Any) -> Any:
    """Of logits less their mean, divided by their deviation."""
    ready = lambda z: (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)  # noqa: E731
    return lambda s, t, extra: expected(ready(s), ready(t), extra)


def nkd(t_: float, gamma: float, official: bool = False) -> Any:
    def row(s: Tensor, t: Tensor, y: int) -> Tensor:
        a, b = (s, t) if official else (without(s, y), without(t, y))
        others = (softmax(b / t_) * torch.log(softmax(a / t_))).sum()
        return -softmax(t)[y] * torch.log(softmax(s)[y]) - gamma * t_**2 * others

    return by_image(row)


def dkd(t_: float, alpha: float, beta: float, warmup: float = 0, power: float = 2) -> Any:
    def row(s: Tensor, t: Tensor, y: int) -> Tensor:
        b_s, b_t = (torch.stack((p[y], 1 - p[y])) for p in (softmax(s / t_), softmax(t / t_)))
        others = kl(softmax(without(t, y) / t_), softmax(without(s, y) / t_))
        return t_**power * (alpha * kl(b_t, b_s) + beta * others)

    return by_image(row, warmup)


def rld(t_: float, alpha: float, beta: float, t_alpha: float, warmup: float) -> Any:
    def row(s: Tensor, t: Tensor, y: int) -> Tensor:
        own, best = softmax(s / t_alpha)[y], softmax(t / t_alpha).max()
        value = alpha * t_alpha**2 * kl(torch.stack((best, 1 - best)), torch.stack((own, 1 - own)))
        kept = [k for k in range(len(t)) if t[k] < t[y]]
        return value + beta * t_**2 * kl(softmax(t[kept] / t_), softmax(s[kept] / t_)) if kept else value

    return by_image(row, warmup)


def abkd(a: float, b: float, t_: float, divisor: Any = None) -> Any:
    def row(s: Tensor, t: Tensor, y: int) -> Tensor:
        p, q = softmax(t / t_), softmax(s / t_)
        if a == b == 0:
            return 0.5 * (torch.log(p / q) ** 2).sum()
        if b == 0:
            return (p**a * torch.log(p**a / q**a) - p**a + q**a).sum() / (divisor or a**2)
        if a == 0:
            return (q**b * torch.log(q**b / p**b) - q**b + p**b).sum() / (divisor or b**2)
        if a + b == 0:
            return (torch.log(q**a / p**a) + p**a / q**a - 1).sum() / (divisor or a**2)
        return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)).sum() / (a * b)

    return by_image(row)


def decay(extra: Extra, start: float) -> float:
    e = math.floor(extra["epoch"]) + 1
    return 1.0 if e <= start else 0.5 * (1 + math.cos(math.pi * (e - start) / (EPOCHS - start)))


def wkd_l(cost: Tensor, t_: float, transport: float, steps: int, start: float) -> Any:
    def row(s: Tensor, t: Tensor, y: int, factor: float) -> Tensor:
        kept = [k for k in range(len(s)) if k != y]
        c, p, q = cost[kept][:, kept], softmax(s[kept] / t_), softmax(t[kept] / t_)
        kernel, u = torch.exp(-c / 0.05), torch.full_like(p, 1 / len(kept))
        for _ in range(steps):
            v = q / (kernel.T @ u + 1e-8)
            u = p / (kernel @ v + 1e-8)
        plan = u[:, None] * kernel * v[None, :]
        return factor * transport * (plan * c).sum() - softmax(t)[y] * torch.log(softmax(s)[y])

    return lambda s, t, extra: by_image(lambda *of: row(*of, decay(extra, start)))(s, t, extra)


FEATURES = torch.randn(6 * CLASSES, 3, generator=torch.Generator().manual_seed(3)).double()
SIMILARITY = class_similarity(FEATURES, torch.arange(CLASSES).repeat(6), CLASSES)


class Transport(WKDL):
    """WKD-L whose classes are already compared."""

    def setup(self, student_shape: Any, teacher_shape: Any) -> None:
        super().setup(student_shape, teacher_shape)
        self.double().init_teacher(SIMILARITY)


COST = torch.clamp(1 - torch.exp(-2 * (1 - SIMILARITY)), min=0) + 1e-8

LOGITS: dict[str, tuple[Any, Any]] = {
    "kd": (lambda: KD(2.5), kd(2.5, 0)),
    "kd official": (lambda: KD(4.0, "official"), kd(4.0, 0)),
    "kd crd": (lambda: KD(4.0, "crd"), kd(4.0)),
    "kd standardised": (lambda: KD(2.5, standardize=True), standardised(kd(2.5, 0))),
    "dkd": (lambda: DKD(4.0, 0.7, 3.0, 4), dkd(4.0, 0.7, 3.0, 4, 0)),
    "dkd official": (lambda: DKD(4.0, 0.7, 3.0, 4, "official"), dkd(4.0, 0.7, 3.0, 4)),
    "dist": (lambda: DIST(4.0, 1.5, 0.7), dist(4.0, 1.5, 0.7, 0, 0.0)),
    "dist official": (lambda: DIST(4.0, 1.5, 0.7, "official"), dist(4.0, 1.5, 0.7, 2, 1e-8)),
    "dist standardised": (lambda: DIST(1.0, standardize=True), standardised(dist(1.0, 2.0, 2.0, 0, 0.0))),
    "ttm": (lambda: TTM(0.3), ttm(0.3, False)),
    "wttm": (lambda: TTM(0.3, weighted=True), ttm(0.3, True)),
    "nkd": (lambda: NKD(3.0, 1.5), nkd(3.0, 1.5)),
    "rld": (lambda: RLD(4.0, 0.7, 8.0, 2.0, 4), rld(4.0, 0.7, 8.0, 2.0, 4)),
    "abkd": (lambda: ABKD(0.8, 0.3), abkd(0.8, 0.3, 4.0)),
    "abkd, negative": (lambda: ABKD(-0.5, 0.9, 2.0), abkd(-0.5, 0.9, 2.0)),
    "abkd, α = 0": (lambda: ABKD(0.0, 0.7, 1.0), abkd(0, 0.7, 1.0)),
    "abkd, β = 0": (lambda: ABKD(0.5, 0.0, 1.0), abkd(0.5, 0, 1.0)),
    "abkd, α + β = 0": (lambda: ABKD(0.5, -0.5, 1.0), abkd(0.5, -0.5, 1.0)),
    "abkd, α = β = 0": (lambda: ABKD(0.0, 0.0, 1.0), abkd(0, 0, 1.0)),
    "abkd official, α = 0": (lambda: ABKD(0.0, 0.7, 1.0, "official"), abkd(0, 0.7, 1.0, 0.7)),
    "abkd official, α + β = 0": (lambda: ABKD(0.5, -0.5, 1.0, "official"), abkd(0.5, -0.5, 1.0, 0.5)),
    "wkd_l": (lambda: Transport(2.0, 30.0, 2.0, decay_from=3, epochs=EPOCHS), wkd_l(COST, 2.0, 30.0, 10, 3)),
}


def batch_of(seed: int, batch: int, classes: int, epoch: float = 1.0) -> tuple[Tensor, Tensor, Extra]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(2, batch, classes, generator=generator)).double().unbind()
    extra = {"labels": torch.randint(classes, (batch,), generator=generator), "index": torch.arange(batch) * 3}
    return student, teacher, extra | {"epoch": torch.tensor(epoch, dtype=torch.float64), "seed": torch.tensor(seed)}


@pytest.mark.parametrize("name", LOGITS)
def test_losses_on_logits(name):
    make, expected = LOGITS[name]
    least = 1 if name.startswith("dist") else 0  # of one image or two classes a correlation is 0 or ±1
    rough = 5e-3 if name.startswith("dist") else 1e-4 if "negative" in name or "+" in name else 2e-5  # ill-conditioned
    for seed in range(8):
        classes = CLASSES if name == "wkd_l" else 2 + least + seed % 5
        student, teacher, extra = batch_of(seed, 1 + least + seed % 4, classes, 1.6 * seed)
        check(make, lambda loss, x, t=teacher, e=extra: expected(x, t, e), student, teacher, extra, rough)


def rows_of(x: Tensor, scales: tuple[int, ...]) -> Tensor:
    """`[B, classes, 4, 4]` → the means over the cells, `[B, M, classes]`."""
    cells = [x.unflatten(3, (n, 4 // n)).unflatten(2, (n, 4 // n)).mean((3, 5)).flatten(2) for n in scales]
    return torch.cat(cells, dim=2).transpose(1, 2)


def sdd(row: Any, scales: tuple[int, ...], warmup: float = 0) -> Any:
    def mean(student: Tensor, teacher: Tensor, extra: Extra) -> Tensor:
        values, s, t = [], rows_of(student, scales), rows_of(teacher, scales)
        for b, y in enumerate(extra["labels"]):
            for m in range(s.shape[1]):
                weight = 1 if (t[b, m].argmax() == y) == (t[b, 0].argmax() == y) else 2
                values.append(weight * row(s[b, m][None], t[b, m][None], {"labels": y[None]}))
        return ramp(extra, warmup) * torch.stack(values).mean()

    return mean


def cat_kd(normalize: bool) -> Any:
    def mean(student: Tensor, teacher: Tensor, extra: Extra) -> Tensor:
        a, b = (rows_of(x, (2,)) for x in (student, teacher))
        if normalize:
            a, b = (cells / cells.square().sum(1, keepdim=True).sqrt() for cells in (a, b))
        return ((a - b) ** 2).mean()

    return mean


MAPS: dict[str, tuple[Any, Any]] = {
    "sdd": (lambda: SDD(temperature=2.0), sdd(kd(2.0), (1, 2))),
    "sdd, three scales": (lambda: SDD(scales=[1, 2, 4]), sdd(kd(4.0), (1, 2, 4))),
    "sdd dkd": (lambda: SDD("dkd", (1, 2), 2.0, 0.7, 3.0, 4), sdd(dkd(2.0, 0.7, 3.0), (1, 2), 4)),
    "sdd nkd": (lambda: SDD("nkd", (1, 4), 2.0, beta=1.5, warmup=4), sdd(nkd(2.0, 1.5), (1, 4), 4)),
    "sdd nkd official": (
        lambda: SDD("nkd", (1, 2), 2.0, beta=1.5, warmup=0, convention="official"),
        sdd(nkd(2.0, 1.5, official=True), (1, 2)),
    ),
    "cat_kd": (CATKD, cat_kd(True)),
    "cat_kd as it is": (lambda: CATKD(normalize=False), cat_kd(False)),
}


@pytest.mark.parametrize("name", MAPS)
def test_losses_on_maps_of_classes(name):
    make, expected = MAPS[name]
    for seed in range(4):
        _, _, extra = batch_of(seed, 1 + seed % 3, 2 + seed % 3, 2.0 * seed)
        shape = (2, len(extra["labels"]), 2 + seed % 3, 4, 4)
        student, teacher = (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).double().unbind()
        check(make, lambda loss, x, t=teacher, e=extra: expected(x, t, e), student, teacher, extra)


def moments(x: Tensor, grid: int, correction: int) -> tuple[Tensor, Tensor]:
    """By cells with adaptive pooling's limits: [B, C, grid²] each."""
    rows, columns = ([(i * n // grid, -(-(i + 1) * n // grid)) for i in range(grid)] for n in x.shape[2:])
    cells = [x[:, :, top:bottom, left:right].flatten(2) for top, bottom in rows for left, right in columns]
    variances = torch.stack([cell.var(2, correction=correction) for cell in cells], dim=2)
    return torch.stack([cell.mean(2) for cell in cells], dim=2), torch.sqrt(variances + 1e-5)


@pytest.mark.parametrize("convention", ["paper", "official"])
@pytest.mark.parametrize("projector", ["conv_bn_relu", "bottleneck"])
@pytest.mark.parametrize(("grid", "size", "epoch"), [(1, 4, 0), (2, 4, 3), (4, 7, 8), (3, 8, EPOCHS - 1)])
def test_wkd_f(convention, projector, grid, size, epoch):
    student, teacher = torch.randn(3, 4, size, size).double(), torch.randn(3, 6, size, size).double()
    extra = {"epoch": torch.tensor(epoch + 0.4, dtype=torch.float64)}

    def expected(loss: WKDF, x: Tensor) -> Tensor:
        (mu_s, sigma_s), (mu_t, sigma_t) = (
            moments(f, grid, convention == "official") for f in (loss.projector(x), teacher)
        )
        value = 3.0 * ((mu_s - mu_t) ** 2).sum() + ((sigma_s - sigma_t) ** 2).sum()
        return decay(extra, 3) * value / (3 * grid**2)

    make = lambda: WKDF(3.0, grid, projector, decay_from=3, epochs=EPOCHS, convention=convention)  # noqa: E731
    check(make, expected, student, teacher, extra, rough=1e-4)


def test_at_no_moment_of_a_run_everything_is_at_full_strength():
    """What comparing the terms' gradients needs: neither a ramp before its end nor a decay after its start."""
    student, teacher, extra = batch_of(0, 3, CLASSES, torch.inf)
    for changing, constant in ((Transport(epochs=EPOCHS, decay_from=0), Transport()), (RLD(), RLD(warmup=0))):
        for loss in (changing, constant):
            loss.setup((CLASSES,), (CLASSES,))
        target = changing.target(teacher) | extra
        assert changing(student, target) == constant(student, target) != 0


def test_mgd():
    """And: the share of masked positions is right, another step masks others, an image's mask does not depend on its batch."""
    student, teacher = torch.randn(3, 4, 3, 3).double(), torch.randn(3, 6, 3, 3).double()
    _, _, extra = batch_of(5, 3, 2)

    def expected(loss: MGD, x: Tensor) -> Tensor:
        conv, a, first, last = torch.nn.functional.conv2d, loss.align, loss.generate[0], loss.generate[2]
        aligned = torch.einsum("oc,bchw->bohw", a.weight[:, :, 0, 0], x) + a.bias[:, None, None]
        masked = aligned * loss.kept(extra["seed"], extra["index"], 6)
        hidden = conv(masked, first.weight, first.bias, padding=1).clamp(min=0)
        return ((conv(hidden, last.weight, last.bias, padding=1) - teacher) ** 2).sum() / 3

    check(lambda: MGD(0.5), expected, student, teacher, extra)
    loss, index = MGD(0.15), torch.arange(400)
    kept = loss.kept(torch.tensor(7), index, 512)
    assert abs((~kept).float().mean() - 0.15) < 0.003
    assert not torch.equal(kept, loss.kept(torch.tensor(8), index, 512))
    assert torch.equal(kept[100:103], loss.kept(torch.tensor(7), index[100:103], 512))


@pytest.mark.parametrize("convention", ["paper", "official"])
@pytest.mark.parametrize("epsilon", [1.0, 1.5])
def test_ofa(convention, epsilon):
    torch.manual_seed(0)
    shapes = [(4, 8, 8), (6, 4, 4), (8, 2, 2), (CLASSES,)]
    students = [torch.randn(3, *shape).double() for shape in shapes]
    logits, teacher, extra = batch_of(1, 3, CLASSES)
    students[-1] = logits
    loss = OFA(epsilon, convention=convention)
    loss.setup(shapes, [(CLASSES,)] * 4)
    loss.double().eval()
    assert [sum(isinstance(m, torch.nn.ReLU) for m in head) for head in loss.heads] == [4, 2, 0]

    def row(s: Tensor, t: Tensor, y: int) -> Tensor:
        p, power = softmax(t), epsilon if convention == "official" else 1
        weights = torch.stack([(1 + p[c]) ** epsilon - 1 if c == y else p[c] ** power for c in range(CLASSES)])
        return -(weights * torch.log(softmax(s))).sum()

    inputs = [x.requires_grad_(True) for x in students]
    targets = [loss.target(teacher, shape) | {"labels": extra["labels"]} for shape in shapes]
    value = loss(inputs, targets)
    rows = [*(head(x) for head, x in zip(loss.heads, inputs, strict=False)), inputs[3]]
    expected = sum(by_image(row)(x, teacher, extra) for x in rows)
    torch.testing.assert_close(value, expected)
    every = [*inputs, *loss.parameters()]
    torch.testing.assert_close(torch.autograd.grad(value, every), torch.autograd.grad(expected, every))


def test_classes_are_compared_by_cka():
    """Against HSIC written out with the centring matrix; the order of the images in the training set may be any."""
    torch.manual_seed(0)
    labels, features = torch.randint(4, (60,)), torch.randn(60, 5).double()
    found = class_similarity(features, labels, 4)
    count = int(torch.bincount(labels).min())
    center = torch.eye(count).double() - 1 / count
    grams = [x @ x.T for x in (features[labels == c][:count] for c in range(4))]
    hsic = torch.tensor([[torch.trace(a @ center @ b @ center) for b in grams] for a in grams])
    own = hsic.diagonal().sqrt()
    torch.testing.assert_close(found, hsic / (own[:, None] * own))
    flat = torch.where((labels == 2)[:, None], 1.0, features)
    assert class_similarity(flat, labels, 4)[2].tolist() == [0, 0, 1, 0]
    with pytest.raises(ValueError, match="class 4 has 0 training images"):
        class_similarity(features, labels, 5)


INF = math.inf
DEGENERATE: dict[str, dict[str, Any]] = {  # logits of some classes, the others random; the label is class 0
    "certain": {"teacher": (0, 500.0), "student": (0, 300.0)},
    "wrong": {"teacher": (-1, 500.0)},  # the label has probability 0
    "excluded": {"teacher": (-1, -INF), "student": (-1, -INF)},
    "excluded by the teacher": {"teacher": (-1, -INF)},
    "one class is left": {"teacher": (slice(1, None), -INF)},
    "constant": {"teacher": (slice(None), 1.0), "student": (slice(None), 0.0)},
}


@pytest.mark.parametrize("name", [n for n in LOGITS if "negative" not in n and "+" not in n and "α = " not in n])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_logits(name, kind):
    """Value and gradient are finite, and the equation's where it can be written out in float64: no 0 / 0, no 0 · ∞."""
    torch.manual_seed(0)
    sides = {"student": torch.randn(3, CLASSES), "teacher": torch.randn(3, CLASSES)}
    for side, (classes, value) in DEGENERATE[kind].items():
        sides[side][:, classes] = value
    make, expected = LOGITS[name]
    loss, teacher = make(), sides["teacher"]
    loss.setup((CLASSES,), (CLASSES,))
    loss.float()
    extra = {"labels": torch.zeros(3, dtype=torch.int64), "epoch": torch.tensor(5.0)}
    wanted, slope = value_and_gradient(lambda x: expected(x, teacher.double(), extra), sides["student"].double())
    value, gradient = value_and_gradient(lambda x: loss(x, loss.target(teacher) | extra), sides["student"])
    assert value.isfinite()
    assert gradient.isfinite().all()
    if "standardised" not in name and wanted.isfinite() and slope.isfinite().all():
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-4 * float(1 + slope.abs().max()))


def test_cross_entropy_with_label_smoothing_and_mixed_labels():
    """Label y gets 1 - ε + ε/C, every other class ε/C; of mixed images each its own part."""
    logits, _, extra = batch_of(0, 4, 10)
    labels, log_p = extra["labels"], logits.log_softmax(1)
    expected = -((0.9 * torch.nn.functional.one_hot(labels, 10) + 0.1 / 10) * log_p).sum(1).mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(CrossEntropy(0.1)(logits, {"labels": labels}), expected)
    mixed = torch.rand(4, 10, dtype=torch.float64).softmax(1)
    torch.testing.assert_close(CrossEntropy()(logits, {"labels": mixed}), -(mixed * log_p).sum(1).mean())


UNFIT: list[tuple[Any, Any, Any, str]] = [
    (KD(), (10,), (100,), "both sides need"),
    (WKDF(grid=4), (3, 8, 8), (3, 4, 4), "4×4"),
    (WKDF(grid=4, projector="bottleneck"), (3, 4, 4), (3, 8, 8), "4×4"),
    (MGD(), (3, 4, 4), (3, 8, 8), "maps of one size"),
    (SDD(), (10, 4, 4), (100, 8, 8), "a channel for each class"),
]


@pytest.mark.parametrize(("loss", "student", "teacher", "message"), UNFIT)
def test_shapes_that_do_not_fit(loss, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        loss.target_shapes(student, teacher)
    if loss.on_logits:
        with pytest.raises(ValueError, match=r"\(2, 10\).*\(2, 100\)"):
            loss(torch.randn(2, 10), loss.target(torch.randn(2, 100)))
