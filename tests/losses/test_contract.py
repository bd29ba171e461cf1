"""What holds for every loss: plans, cached targets, second derivatives, keys, copies."""

import copy
import inspect
from math import inf, nan, prod

import pytest
import torch
from tests.losses.every import LOSSES, Case

import nst.losses
from nst.losses import (
    ABKD,
    AT,
    CATKD,
    CC,
    CRD,
    DIST,
    DKD,
    KD,
    MGD,
    NKD,
    NST,
    OFA,
    PKT,
    RKD,
    RLD,
    SDD,
    TTM,
    VID,
    WKDF,
    WKDL,
    CrossEntropy,
    FitNet,
    ReviewKD,
    TransferLoss,
)  # fmt: skip

every = pytest.mark.parametrize("name", LOSSES)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])


def test_all_losses_are_tried():
    classes = {getattr(nst.losses, name) for name in nst.losses.__all__}
    own = {c for c in classes if inspect.isclass(c) and issubclass(c, TransferLoss) and not inspect.isabstract(c)}
    assert own - {CrossEntropy} == {type(make()) for make in LOSSES.values()}


@every
def test_the_plan_says_what_the_summary_is(name):
    case = Case(name)
    for target, (student, teacher) in zip(case.targets(), case.shapes, strict=True):
        spec = case.loss.spec(student, teacher)
        assert {key: tuple(value.shape[1:]) for key, value in target.items()} == spec.target
        assert spec.workspace > 0
        assert not any(value.requires_grad for value in target.values())


@every
@layouts
def test_a_cached_summary_gives_the_same_bits_as_a_live_one(name, layout):
    """A cache of float32 hands over contiguous arrays, a network channels-last ones: value and gradients are equal, bit for bit."""
    case = Case(name, batch=6, layout=layout)
    live = case.targets()
    assert case.loss.target_key
    cached = [{key: torch.from_numpy(value.numpy().copy(order="C")) for key, value in own.items()} for own in live]
    for a, b in zip(case.step(live), case.step(cached), strict=True):
        assert torch.equal(a, b)


@every
def test_equal_keys_mean_equal_targets(name):
    case = Case(name)
    for other in LOSSES:
        if other == name or Case(other).loss.target_key != case.loss.target_key:
            continue
        shared = [shapes in Case(other).shapes for shapes in case.shapes]
        for (student, teacher), feature, both in zip(case.shapes, case.teachers, shared, strict=True):
            if not both:
                continue
            mine, theirs = (c.loss.target(feature, student) for c in (case, Case(other)))
            implementations = [c.loss.spec(student, teacher).implementation for c in (case, Case(other))]
            for key in mine.keys() & theirs.keys() if implementations[0] == implementations[1] else ():
                assert torch.equal(mine[key], theirs[key])


@every
def test_a_second_derivative_is_right_or_refused(name):
    """A gradient penalty, whose incoming gradient is a constant: it raises, or equals finite differences."""
    case = Case(name, batch=3)
    case.loss.double().eval()
    students = [x.double() for x in case.students]
    targets = [{key: value.double() for key, value in own.items()} for own in case.targets()]
    direction = [torch.randn_like(x) for x in students]

    def slope(shift: float, create: bool) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
        moved = [(x + shift * d).detach().requires_grad_(True) for x, d in zip(students, direction, strict=True)]
        return moved, torch.autograd.grad(case.value(moved, targets), moved, create_graph=create)

    moved, gradients = slope(0.0, True)
    along = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    if name.startswith(("NST", "AT", "RKD", "CRD")):  # whose backward pass is written out
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            torch.autograd.grad(along, moved)
        return
    second = torch.autograd.grad(along, moved)
    found = sum((g * d).sum() for g, d in zip(second, direction, strict=True))
    step = 1e-5
    ends = [sum((g * d).sum() for g, d in zip(slope(s, False)[1], direction, strict=True)) for s in (step, -step)]
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-7)


@every
def test_copies_are_independent(name):
    """Each pair of layers has a copy of its own, made before setup."""
    loss = LOSSES[name]()
    other = copy.deepcopy(loss)
    case = Case(name)
    assert other.target_key == case.loss.target_key
    assert not [*loss.parameters(), *loss.buffers()]


@every
def test_float64_stays_and_all_else_is_float32(name):
    case = Case(name)
    assert case.value(case.students, case.targets()).dtype == torch.float32
    case.loss.double()
    case.teachers = [x.double() for x in case.teachers]
    assert case.value([x.double() for x in case.students], case.targets()).dtype == torch.float64


@pytest.mark.parametrize("name", [name for name, make in LOSSES.items() if make().relational])
def test_what_ranks_exchange_gives_the_value_of_the_whole_feature(name):
    case = Case(name)
    state = {name: tensor.clone() for name, tensor in case.loss.state_dict().items()}
    whole = case.value(case.students, case.targets())
    case.loss.load_state_dict(state)
    compact = case.value([case.loss.reduce_student(x) for x in case.students], case.targets())
    torch.testing.assert_close(compact, whole)


@every
def test_the_value_is_a_mean_over_images_unless_it_relates_them(name):
    case = Case(name, batch=6)
    if case.loss.relational or any(isinstance(m, torch.nn.BatchNorm2d) for m in case.loss.modules()):
        return
    whole = case.value(case.students, case.targets())
    students, teachers, extra = case.students, case.teachers, case.extra
    parts = []
    for part in (slice(0, 2), slice(2, 6)):
        case.students, case.teachers = [x[part] for x in students], [x[part] for x in teachers]
        case.extra = extra | {name: extra[name][part] for name in ("labels", "index")}
        parts.append(case.value(case.students, case.targets()))
    torch.testing.assert_close((2 * parts[0] + 4 * parts[1]) / 6, whole, rtol=1e-5, atol=1e-7)


def test_targets_are_as_small_as_the_docs_say():
    sizes = {}
    for name in LOSSES:
        case = Case(name)
        sizes[name] = [prod(shape) for shape in case.loss.spec(*case.shapes[0]).target.values()]
    assert sizes["AT"] == [64]
    assert sizes["NST gram"] == [64 * 65 // 2]
    assert sizes["KD"] == sizes["DKD"] == sizes["DIST"] == [10]
    assert sizes["RKD"] == sizes["PKT"] == sizes["CC"] == sizes["CRD"] == [40]
    assert sizes["TTM"] == sizes["NKD"] == sizes["RLD"] == sizes["ABKD"] == sizes["WKD-L"] == sizes["OFA"] == [10]
    assert sizes["WKD-F"] == [40, 40]
    assert sizes["CAT-KD"] == [40]
    assert sizes["SDD"] == [50]
    assert sizes["MGD"] == [40 * 64]
    assert sizes["SP"] == sizes["VID"] == sizes["FitNet"] == sizes["ReviewKD"] == [40 * 64]


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


@pytest.mark.parametrize(
    "name",
    ["AT", "AT zoo", "FitNet", "KD", "DKD", "DIST", "SP", "RKD", "RKD crd", "PKT", "PKT crd", "NST gram", "NST crd"],
)
def test_zero_at_equality(name):
    loss = LOSSES[name]()
    x = torch.randn(5, 10) if loss.on_logits else torch.randn(5, 4, 3, 3)
    extra = {"labels": torch.tensor([0, 1, 2, 0, 1]), "epoch": torch.tensor(9.0)}
    assert abs(loss(x, loss.target(x) | extra).item()) < 1e-6


NUMBERS = {
    (AT, "p"): (nan, inf, 0.5),
    **{(make, "temperature"): (0.0, -1.0, nan, inf) for make in (KD, DKD, DIST, CRD, NKD)},
    **{(DKD, name): (-1.0, nan) for name in ("alpha", "beta", "warmup")},
    **dict.fromkeys(((DIST, "beta"), (RKD, "distance"), (RKD, "angle")), (-1.0, inf)),
    **dict.fromkeys(
        ((VID, "initial_variance"), (CC, "gamma"), (RLD, "alpha_temperature"), (WKDL, "sharpness")), (0.0,)
    ),
    **dict.fromkeys(((CC, "dim"), (CC, "order"), (CRD, "dim"), (CRD, "negatives")), (0, 1.5)),
    **dict.fromkeys(((WKDL, "steps"), (WKDF, "grid"), (CATKD, "resolution")), (0,)),
    (CRD, "momentum"): (1.0, nan),
    (CRD, "sampling"): ("exact",),
    (ReviewKD, "warmup"): (-1, inf),
    (ReviewKD, "channels"): (0, 1.5),
    (CrossEntropy, "label_smoothing"): (-0.1, 1.0, nan),
    **{(TTM, name): (value,) for name, value in (("gamma", 0.0), ("weighted", 1))},
    **dict.fromkeys(((FitNet, "regressor"), (WKDF, "projector"), (SDD, "form")), ("linear",)),
    **{
        (make, name): (value,)
        for make, name, value in ((SDD, "scales", [2, 4]), (MGD, "mask", 1.0), (OFA, "epsilon", 0.0))
    },
    **{(make, "convention"): ("code",) for make in (AT, NST, FitNet, KD, DKD, DIST, RKD, PKT, CC, VID, ABKD)},
}


@pytest.mark.parametrize(("make", "name"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_arguments_out_of_range_are_named(make, name):
    for value in NUMBERS[make, name]:
        with pytest.raises(ValueError, match=f"^{name} is"):
            make(**{name: value})
