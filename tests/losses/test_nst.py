"""NST equals the double loop of equation 4 for every kernel, implementation and convention, and behaves at the edges."""

import pytest
import torch
from tests.losses.reference import check, feature, mmd2, value_and_gradient
from torch import Tensor
from torch.nn import functional as F

from nst.losses import NST

EVERY = [
    {"kernel": "linear"},
    {"kernel": "linear", "implementation": "stream"},
    {"implementation": "gram"},
    {"implementation": "pairs"},
    {"implementation": "stream"},
    {"implementation": "gram", "c": 0.5},
    {"implementation": "pairs", "c": 0.5},
    {"degree": 1, "c": 0.5},
    {"degree": 3, "c": -0.25},
    {"kernel": "gaussian"},
    {"kernel": "gaussian", "sigma2": "joint"},
    {"kernel": "gaussian", "sigma2": 0.7},
]


every = pytest.mark.parametrize("options", EVERY, ids=lambda options: " ".join(map(str, options.values())))


@pytest.mark.parametrize("convention", ["paper", "official", "crd"])
@every
def test_equals_the_double_loop(options, convention):
    gaussian, official = options.get("kernel") == "gaussian", convention == "official"
    degree, c = (1, 0.0) if options.get("kernel") == "linear" else (options.get("degree", 2), options.get("c", 0.0))
    kernel = options.get("sigma2", "pairs") if gaussian else lambda x, y: ((x * y).sum(-1) + c) ** degree
    eps, factor = 1e-10 if official and not gaussian else 0.0, 0.5 if convention == "paper" else 1.0
    # the Gaussian takes a channel's kernel with itself for 1 in spite of the ε in the norm; rounding of x·y enters divided by σ²
    rough, fine = 1e-4 if gaussian else 2e-5, 1e-7 if gaussian and official else 1e-9
    kinds, least = ("signed", "relu", "dead channels", "constant"), 2 if gaussian else 1
    for seed in range(12):
        size = (least + seed % 3, least + seed // 3 % 3)
        student = feature(seed, (2, least + seed % 5, *size), kinds[seed % 3])
        teacher = feature(seed + 100, (2, least + 3 * seed % 4, *size), kinds[seed // 4])

        def expected(loss: NST, x: Tensor, teacher: Tensor = teacher) -> Tensor:
            return factor * mmd2(x, teacher, kernel, own=not official, eps=eps)

        check(lambda: NST(**options, convention=convention), expected, student, teacher, rough=rough, fine=fine)


@every
def test_channels_last_keeps_the_layout_and_the_ends_of_half_precision_the_value(options):
    loss, x = NST(**options), feature(0, (2, 6, 4, 4), "signed").float()
    target = feature(1, (2, 8, 4, 4), "relu").float()
    _, expected = value_and_gradient(lambda y: loss(y, loss.target(target, (6, 4, 4))), x)
    x, target = (y.to(memory_format=torch.channels_last) for y in (x, target))
    x.requires_grad_(True)
    loss(x, loss.target(target, (6, 4, 4))).backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-5, atol=1e-7)
    student, teacher = (feature(seed, (1, 4, 3, 3), "signed").sign() for seed in (0, 1))
    for scale in (65504.0, 6.2e-5):
        value, gradient = value_and_gradient(
            lambda x, s=scale: loss(x, loss.target((teacher * s).half())), (student * scale).half()
        )
        torch.testing.assert_close(value, loss(student, loss.target(teacher)), rtol=1e-5, atol=1e-6)
        assert gradient.isfinite().all()


@every
def test_dead_channels_and_constant_maps_have_finite_values_and_no_gradient(options):
    loss = NST(**options)
    x, teacher = feature(0, (2, 4, 3, 3), "signed").float(), feature(1, (2, 4, 3, 3), "constant").float()
    x[:, 1] = 0
    x[:, 2] = 1e-20  # its square is not representable: dead too
    x.requires_grad_(True)
    value = loss(x, loss.target(teacher))
    value.backward()
    assert value.isfinite()
    assert (x.grad[:, 1:3] == 0).all()
    assert (x.grad[:, 0] != 0).any()
    assert x.grad.abs().max() < 10
    large = x.detach().clone()
    large[0, 0] *= 1e20  # ‖x‖² overflows: NaN, which a run's check finds, instead of a loss without this channel
    assert loss(large, loss.target(teacher)).isnan()
    assert loss(x, loss.target(large)).isnan()


CLOSE = [(EVERY[2], 1e-5), (EVERY[3], 1e-5), ({"kernel": "linear"}, 1e-4), ({"kernel": "gaussian"}, 1e-3)]


@pytest.mark.parametrize(("options", "tolerance"), CLOSE, ids=str)
def test_accuracy_when_student_and_teacher_are_close(options, tolerance):
    """MMD² of about 1e-5, where three separate sums in float32 are wrong by 4e-4 and more."""
    loss = NST(**options)
    teacher = feature(0, (4, 32, 8, 8), "relu").float()
    student = teacher + 0.015 * feature(1, (4, 32, 8, 8), "signed").float()
    target = loss.target(teacher.double())
    exact, exact_gradient = value_and_gradient(lambda x: loss(x, target), student.double())
    value, gradient = value_and_gradient(lambda x: loss(x, loss.target(teacher)), student)
    assert 1e-6 < exact < 3e-5
    assert abs(value / exact - 1) < tolerance
    assert (gradient - exact_gradient).norm() < tolerance * exact_gradient.norm()


@every
def test_maps_of_different_size(options):
    small, large = feature(0, (2, 4, 3, 3), "signed").float(), feature(1, (2, 5, 6, 6), "signed").float()
    paper, crd = NST(**options), NST(**options, convention="crd")
    for student, teacher in ((small, large), (large, small)):
        shape = tuple(student.shape[1:])
        resized = F.interpolate(teacher, size=shape[1:], mode="bilinear", align_corners=False)
        expected = paper(student, paper.target(resized, shape))
        torch.testing.assert_close(paper(student, paper.target(teacher, shape)), expected)
        pooled, other = (F.adaptive_avg_pool2d(x, (3, 3)) for x in (student, teacher))
        expected = crd(pooled, crd.target(other, tuple(pooled.shape[1:])))
        torch.testing.assert_close(crd(student, crd.target(teacher, shape)), expected)


def test_the_cheaper_implementation_is_chosen_by_shape_and_travels_with_the_target():
    assert NST().target_shapes((336, 8, 8), (256, 8, 8)) == {"gram": (2080,)}  # its upper triangle
    assert NST().target_shapes((16, 32, 32), (16, 32, 32)) == {"pairs": (16, 1024)}
    x, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 5, 3, 3)
    for implementation in ("gram", "pairs", "stream"):
        target = NST(implementation=implementation).target(teacher, (4, 3, 3))
        assert [*target] == [implementation]
        torch.testing.assert_close(NST(implementation="stream")(x, target), NST()(x, NST().target(teacher)))


def test_inputs_that_do_not_fit():
    loss, x = NST(), torch.randn(2, 4, 6, 6)
    target = loss.target(x)
    wrong = {
        r"\[B, C, H, W\]": lambda: loss(x.flatten(2), target),
        "of its own target": lambda: loss(x, {"logits": torch.randn(2, 10)}),
        r"'mean'.*'stream'": lambda: NST("gaussian")(x, NST("linear").target(x)),
        "aspect ratio": lambda: NST(convention="crd").target(x, (4, 3, 2)),
        "mean, stream": lambda: NST("linear", implementation="gram"),
        "sigma2 is 'median'.*pairs, joint": lambda: NST("gaussian", sigma2="median"),  # type: ignore[arg-type]
    }
    for words, call in wrong.items():
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match=r"loss\.target\(teacher\)"):
        loss(x, x)  # pyright: ignore[reportArgumentType]
