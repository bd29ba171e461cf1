"""NST equals the double loop of equation 4 for every kernel, implementation and convention, and behaves at the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses import reference
from tests.losses.reference import assert_equal, feature, feature_pairs
from torch.nn import functional as F

from nst.losses import NST

quick = settings(max_examples=25, deadline=None)
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


def name(options: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())


@pytest.mark.parametrize("convention", ["paper", "official", "crd"])
@pytest.mark.parametrize("implementation", ["gram", "pairs", "stream"])
@quick
@given(pair=feature_pairs(), c=st.sampled_from([0.0, 0.5, -0.3]))
def test_polynomial(convention, implementation, pair, c):
    eps = 1e-10 if convention == "official" else 0.0
    assert_equal(
        NST(c=c, implementation=implementation, convention=convention),
        *pair,
        lambda s, t: (
            (0.5 if convention == "paper" else 1.0)
            * reference.mmd2(s, t, reference.polynomial(2, c), teacher_term=convention != "official", eps=eps)
        ),
        # crd: without the ½ the rounding is twice the paper's; official: without its constant the value is a difference of sums
        atol={"paper": 3e-7, "crd": 6e-7, "official": 1e-6}[convention],
    )


@quick
@given(pair=feature_pairs(), degree=st.sampled_from([1, 2, 3]), c=st.sampled_from([0.0, 0.5]))
def test_degrees(pair, degree, c):
    kernel = reference.polynomial(degree, c)
    for implementation in ("auto", "stream"):
        loss = NST(degree=degree, c=c, implementation=implementation)
        assert_equal(loss, *pair, lambda s, t: 0.5 * reference.mmd2(s, t, kernel))


@quick
@given(pair=feature_pairs())
def test_linear(pair):
    assert_equal(NST("linear"), *pair, lambda s, t: 0.5 * reference.mmd2(s, t, reference.polynomial(1, 0.0)))


@pytest.mark.parametrize("convention", ["paper", "official", "crd"])
@quick
@given(pair=feature_pairs(), sigma2=st.sampled_from(["pairs", "joint", 0.7]))
def test_gaussian(convention, pair, sigma2):
    student, teacher = pair
    maps = [[[reference.unit(c.flatten()) for c in image] for image in x] for x in pair]
    smallest = min(reference.sigma2_of(sigma2, xs, ys) for xs, ys in zip(*maps, strict=True))
    if smallest < 1e-2:
        return  # maps that differ by little more than rounding: float32 has nothing to compare
    squared = torch.cat([x.square().sum((2, 3)).flatten() for x in pair])
    if convention == "official" and ((squared > 0) & (squared < 1e-3)).any():
        return  # the ε in the norm, which the Gaussian implementation takes for 1, shows at such channels
    assert_equal(
        NST("gaussian", sigma2=sigma2, convention=convention),
        student,
        teacher,
        lambda s, t: (
            (0.5 if convention == "paper" else 1.0)
            * reference.mmd2(s, t, sigma2, teacher_term=convention != "official")
        ),
        atol=3e-7 * max(1.0, 1 / smallest),  # rounding of x·y enters divided by σ²
    )


@pytest.mark.parametrize("options", EVERY, ids=name)
def test_zero_at_equality_and_without_gradient(options):
    loss = NST(**options)
    for kind in reference.KINDS:
        x = feature(3, (2, 6, 4, 4), kind).float().requires_grad_(True)
        value = loss(x, loss.target(x))
        value.backward()
        assert abs(value.item()) < 3e-7
        assert x.grad.abs().max() < 1e-6


@pytest.mark.parametrize("options", EVERY, ids=name)
def test_gradcheck_in_float64(options):
    loss = NST(**{**options, "sigma2": 0.7} if options.get("kernel") == "gaussian" else options)
    student, teacher = feature(0, (2, 3, 2, 3), "signed").requires_grad_(True), feature(1, (2, 4, 2, 3), "relu")
    target = loss.target(teacher, (3, 2, 3))
    assert loss(student, target).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (student,))


@pytest.mark.parametrize("options", EVERY, ids=name)
def test_channels_last_gives_the_same_and_keeps_the_layout(options):
    loss = NST(**options)
    student, teacher = feature(0, (2, 6, 4, 4), "signed").float(), feature(1, (2, 8, 4, 4), "relu").float()
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = student.to(memory_format=layout).requires_grad_(True)
        value = loss(x, loss.target(teacher.to(memory_format=layout), (6, 4, 4)))
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.is_contiguous(memory_format=layout)
        results.append((value.detach(), gradient))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("options", EVERY, ids=name)
@pytest.mark.parametrize("scale", [65504.0, 6.2e-5])
def test_the_ends_of_half_precision(options, scale):
    loss = NST(**options)
    student, teacher = feature(0, (1, 4, 3, 3), "signed"), feature(1, (1, 4, 3, 3), "signed")
    expected = loss(student.sign(), loss.target(teacher.sign()))
    x = (student.sign() * scale).half().requires_grad_(True)
    value = loss(x, loss.target((teacher.sign() * scale).half()))
    value.backward()
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("options", EVERY, ids=name)
def test_dead_channels_and_constant_maps_have_finite_values_and_no_gradient(options):
    loss = NST(**options)
    student = feature(0, (2, 4, 3, 3), "signed").float()
    student[:, 1] = 0
    student[:, 2] = 1e-20  # its square is not representable: dead too
    x = student.requires_grad_(True)
    value = loss(x, loss.target(feature(1, (2, 4, 3, 3), "constant").float()))
    value.backward()
    assert value.isfinite()
    assert (x.grad[:, 1:3] == 0).all()
    assert (x.grad[:, 0] != 0).any()
    assert x.grad.abs().max() < 10
    nothing = torch.zeros(2, 4, 3, 3, requires_grad=True)
    loss(nothing, loss.target(torch.zeros(2, 4, 3, 3))).backward()
    assert (nothing.grad == 0).all()


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"implementation": "gram"}, 1e-5),
        ({"implementation": "pairs"}, 1e-5),
        ({"kernel": "linear"}, 1e-4),
        ({"kernel": "gaussian"}, 1e-3),
    ],
    ids=str,
)
def test_accuracy_when_student_and_teacher_are_close(options, tolerance):
    """MMD² of about 1e-5, where three separate sums in float32 are wrong by 4e-4 and more."""
    loss = NST(**options)
    teacher = feature(0, (4, 32, 8, 8), "relu").float()
    student = teacher + 0.015 * feature(1, (4, 32, 8, 8), "signed").float()
    exact, exact_gradient = reference.value_and_gradient(
        lambda x: loss(x, loss.target(teacher.double())), student.double()
    )
    value, gradient = reference.value_and_gradient(lambda x: loss(x, loss.target(teacher)), student)
    assert 1e-6 < exact < 3e-5
    assert abs(value / exact - 1) < tolerance
    assert (gradient - exact_gradient).norm() < tolerance * exact_gradient.norm()


@pytest.mark.parametrize("options", EVERY, ids=name)
def test_maps_of_different_size(options):
    small, large = feature(0, (2, 4, 3, 3), "signed").float(), feature(1, (2, 5, 6, 6), "signed").float()
    paper, crd = NST(**options), NST(**options, convention="crd")
    for student, teacher in ((small, large), (large, small)):
        shape = tuple(student.shape[1:])
        resized = F.interpolate(teacher, size=shape[1:], mode="bilinear", align_corners=False)
        expected = paper(student, paper.target(resized, shape))
        torch.testing.assert_close(paper(student, paper.target(teacher, shape)), expected)
        pooled = F.adaptive_avg_pool2d(student, (3, 3)), F.adaptive_avg_pool2d(teacher, (3, 3))
        expected = crd(pooled[0], crd.target(pooled[1], tuple(pooled[0].shape[1:])))
        torch.testing.assert_close(crd(student, crd.target(teacher, shape)), expected)


@pytest.mark.parametrize("options", EVERY, ids=name)
def test_overflowing_features_are_not_dead_channels(options):
    """‖x‖² overflows from 1.8e19 on: the value is NaN, which a run's check finds, instead of a loss without them."""
    loss = NST(**options)
    student, teacher = feature(0, (2, 4, 3, 3), "signed").float(), feature(1, (2, 5, 3, 3), "signed").float()
    large = student.clone()
    large[0, 1] *= 1e20
    assert loss(large, loss.target(teacher, (4, 3, 3))).isnan()
    assert loss(student * 1e17, loss.target(teacher * 1e17, (4, 3, 3))).isfinite()
    large = teacher.clone()
    large[0, 1] *= 1e20
    assert loss(student, loss.target(large, (4, 3, 3))).isnan()


def test_compiles_in_one_graph():
    loss = NST()
    student, teacher = feature(0, (2, 4, 2, 2), "signed").float(), feature(1, (2, 4, 2, 2), "signed").float()

    def step(student, teacher):
        return loss(student, loss.target(teacher))

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    eager_x, compiled_x = student.clone().requires_grad_(True), student.clone().requires_grad_(True)
    expected, value = step(eager_x, teacher), compiled(compiled_x, teacher)
    expected.backward()
    value.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(compiled_x.grad, eager_x.grad)


@pytest.mark.parametrize(
    ("student", "teacher", "implementation"),
    [
        ((336, 8, 8), (256, 8, 8), "gram"),
        ((1024, 7, 7), (2048, 7, 7), "gram"),
        ((16, 32, 32), (16, 32, 32), "pairs"),
        ((16, 16, 16), (64, 16, 16), "pairs"),
    ],
)
def test_the_cheaper_implementation_is_chosen_by_shape(student, teacher, implementation):
    assert NST().spec(student, teacher).implementation == implementation
    assert NST("linear").spec(student, teacher).implementation == "mean"
    assert NST("gaussian").spec(student, teacher).implementation == "stream"
    assert NST().spec((336, 8, 8), (256, 8, 8)).target == {"gram": (2080,)}  # its upper triangle


def test_the_implementation_travels_with_the_target():
    x, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 5, 3, 3)
    expected = NST()(x, NST().target(teacher))
    for implementation in ("gram", "pairs", "stream"):
        target = NST(implementation=implementation).target(teacher, (4, 3, 3))
        assert [*target] == [implementation]
        for reader in (NST(), NST(implementation="stream"), NST(implementation="gram")):
            torch.testing.assert_close(reader(x, target), expected)


def test_what_a_kernel_does_not_have():
    for sigma2, words in ((0.0, "more than 0"), ("median", "pairs, joint")):
        with pytest.raises(ValueError, match=f"sigma2 is {sigma2!r}.*{words}"):
            NST("gaussian", sigma2=sigma2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mean, stream"):
        NST("linear", implementation="gram")


def test_inputs_that_do_not_fit():
    loss, x = NST(), torch.randn(2, 4, 6, 6)
    target = loss.target(x)
    wrong = {
        r"\[B, C, H, W\]": lambda: loss(x.flatten(2), target),
        "student_shape": lambda: loss(torch.randn(2, 4, 3, 3), target),
        "from its own target": lambda: loss(x, {"logits": torch.randn(2, 10)}),
        r"'mean'.*'stream'": lambda: NST("gaussian")(x, NST("linear").target(x)),
        "aspect ratio": lambda: NST(convention="crd").target(x, (4, 3, 2)),
        "at least 1": lambda: loss.spec((4, 0, 3), (4, 3, 3)),
        "floating": lambda: loss.target(x.long()),
    }
    for words, call in wrong.items():
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match=r"loss\.target\(teacher\)"):
        loss(x, x)  # pyright: ignore[reportArgumentType]
