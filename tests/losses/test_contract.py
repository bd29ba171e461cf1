"""What holds for every loss: plans, cached targets, second derivatives, keys, copies."""

import copy
from functools import cache
from math import nan

import pytest
import torch
from tests.losses.every import LOSSES, Case
from tests.losses.reference import value_and_gradient

from nst import losses

every = pytest.mark.parametrize("name", LOSSES)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])


@every
@layouts
def test_a_cached_target_gives_the_same_bits_as_a_live_one(name, layout):
    """A cache of float32 hands over contiguous arrays, a network channels-last ones: value and gradients are equal, bit for bit."""
    case = Case(name, batch=6, layout=layout)
    live = case.targets()
    for target, (student, teacher) in zip(live, case.shapes, strict=True):
        shapes = case.loss.target_shapes(student, teacher)
        assert {key: tuple(value.shape[1:]) for key, value in target.items()} == shapes
        assert not any(value.requires_grad for value in target.values())
    assert case.loss.target_key
    cached = [{key: torch.from_numpy(value.numpy().copy(order="C")) for key, value in own.items()} for own in live]
    assert all(map(torch.equal, case.step(live), case.step(cached)))


cases = cache(Case)


@every
def test_equal_keys_mean_equal_targets(name):
    """In the tensors of one name; a loss's copy has its key."""
    case = cases(name)
    assert copy.deepcopy(LOSSES[name]()).target_key == case.loss.target_key
    for other in (c for c in map(cases, LOSSES) if c.loss.target_key == case.loss.target_key):
        for shapes, feature in zip(case.shapes, case.teachers, strict=True):
            if shapes in other.shapes:
                mine, theirs = (c.loss.target(feature, shapes[0]) for c in (case, other))
                assert all(torch.equal(mine[key], theirs[key]) for key in mine.keys() & theirs.keys())


@every
def test_a_second_derivative_is_right_or_refused(name):
    """A gradient penalty, whose incoming gradient is a constant: it raises, or equals finite differences."""
    case = Case(name, batch=3)
    case.loss.double().eval()
    students = [x.double() for x in case.students]
    targets = [{key: value.double() for key, value in own.items()} for own in case.targets()]
    direction = [torch.randn_like(x) for x in students]

    def along(shift: torch.Tensor) -> torch.Tensor:
        moved = [x + shift.requires_grad_(True) * d for x, d in zip(students, direction, strict=True)]
        gradients = torch.autograd.grad(case.value(moved, targets), moved, create_graph=True)
        return torch.stack([(g * d).sum() for g, d in zip(gradients, direction, strict=True)]).sum()

    at, step = torch.zeros((), dtype=torch.float64), 1e-5
    slope = along(at)
    if name.startswith(("NST", "AT", "RKD", "CRD")):  # whose backward pass is written out
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            torch.autograd.grad(slope, at)
        return
    expected = (along(at.detach() + step) - along(at.detach() - step)) / (2 * step)
    torch.testing.assert_close(torch.autograd.grad(slope, at)[0], expected, rtol=1e-4, atol=1e-7)


@every
def test_the_value_is_a_mean_over_images_or_of_what_ranks_exchange(name):
    case = Case(name, batch=6)
    state = {name: tensor.clone() for name, tensor in case.loss.state_dict().items()}
    whole = case.value(case.students, case.targets())
    case.loss.load_state_dict(state)
    if case.loss.relational:
        compact = case.value([case.loss.reduce_student(x) for x in case.students], case.targets())
        torch.testing.assert_close(compact, whole)
    elif not any(isinstance(m, torch.nn.BatchNorm2d) for m in case.loss.modules()):
        students, teachers, extra = case.students, case.teachers, case.extra
        parts = []
        for part in (slice(0, 2), slice(2, 6)):
            case.students, case.teachers = [x[part] for x in students], [x[part] for x in teachers]
            case.extra = extra | {name: extra[name][part] for name in ("labels", "index")}
            parts.append(case.value(case.students, case.targets()))
        torch.testing.assert_close((2 * parts[0] + 4 * parts[1]) / 6, whole, rtol=1e-5, atol=1e-7)


@every
def test_half_precision_and_autocast(name):
    """Autocast changes nothing but what learned convolutions compute; half features give a float32 value near the exact one."""
    case = Case(name, batch=6)
    expected, *_ = case.step(case.targets())
    convolves = any(isinstance(module, torch.nn.Conv2d) for module in case.loss.modules())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, *_ = case.step(case.targets())
        assert convolves or torch.equal(value, expected)
        case.students, case.teachers = ([x.bfloat16() for x in side] for side in (case.students, case.teachers))
        half, *_ = case.step(case.targets())
    assert value.dtype == half.dtype == torch.float32
    for found in (value, half):
        torch.testing.assert_close(found, expected, rtol=5e-2, atol=2e-2)


ZERO = ["AT", "AT zoo", "FitNet", "KD", "DKD", "DIST", "SP", "RKD", "RKD crd", "PKT", "PKT crd"]


@pytest.mark.parametrize("name", [*ZERO, *(name for name in LOSSES if name[:3] == "NST" and "official" not in name)])
def test_zero_at_equality(name):
    loss = LOSSES[name]()
    x = torch.randn(5, 10) if loss.on_logits else torch.randn(5, 4, 3, 3)
    extra = {"labels": torch.tensor([0, 1, 2, 0, 1]), "epoch": torch.tensor(9.0)}
    value, gradient = value_and_gradient(lambda y: loss(y, loss.target(x) | extra), x)
    assert abs(value.item()) < 1e-6
    assert gradient.abs().max() < 1e-5


DEGENERATE = ["zeros", "zero student", "constant", "equal images", "two equal images", "opposite images", "one image"]


@every
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_batches_are_finite(name, kind):
    """Value and gradients of features and parameters; between images that are one there is no relation that could explode."""
    case = Case(name, batch=1 if kind == "one image" else 4)
    if kind == "one image" and isinstance(case.loss, losses.ReviewKD):
        case.loss.eval()  # its batch norm needs more than one value
    both = kind in ("zeros", "constant", "equal images")
    for x in (*case.students, *(case.teachers if both else ())):
        if kind in ("zeros", "zero student", "constant"):
            x.fill_(float(kind == "constant"))
        elif kind != "one image":
            x[1 : 4 if kind == "equal images" else 2] = -x[:1] if kind == "opposite images" else x[:1].clone()
    for tensor in case.step(case.targets()):
        assert tensor.isfinite().all()
        assert tensor.abs().max() < 1e5


@every
def test_what_is_missing_or_does_not_fit_is_named(name):
    case = Case(name)
    targets, extra = case.targets(), case.extra
    for missing in case.loss.inputs:
        case.extra = {key: value for key, value in extra.items() if key != missing}
        with pytest.raises(ValueError, match=f"'{missing}'"):
            case.value(case.students, targets)
    case.extra = extra
    with pytest.raises(ValueError, match="batch is 3 images"):
        case.value([x[:3] for x in case.students], targets)
    made, case.loss = [*case.loss.parameters(), *case.loss.buffers()], LOSSES[name]()
    if made and name != "CC":  # which compares features as they are without its embeddings
        with pytest.raises(ValueError, match="call setup"):
            case.value(case.students, targets)


WRONG = [
    ("AT", "p", nan), ("CRD", "negatives", 1.5), ("CrossEntropy", "label_smoothing", 1.0), ("KD", "temperature", True),
    ("KD", "standardize", "off"), ("NST", "kernel", "cubic"), ("SDD", "scales", [2, 4]),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "name", "value"), WRONG)
def test_arguments_out_of_range_are_named(loss, name, value):
    with pytest.raises(ValueError, match=f"^{name} is"):
        getattr(losses, loss)(**{name: value})
