"""FitNet is the mean squared difference of equal shapes."""

import pytest
import torch
from tests.losses.reference import assert_equal, feature

from nst.losses import FitNet


@pytest.mark.parametrize(("convention", "factor"), [("paper", 0.5), ("official", 0.5), ("crd", 1.0)])
def test_equals_the_mean_of_squares(convention, factor):
    student, teacher = feature(0, (2, 5, 3, 4), "signed"), feature(1, (2, 5, 3, 4), "relu")

    def double_loop(s, t):
        total = torch.zeros((), dtype=torch.float64)
        for a, b in zip(s.flatten(), t.flatten(), strict=True):
            total = total + (a - b) ** 2
        return factor * total / s.numel()

    assert_equal(FitNet(convention), student, teacher, double_loop)


def test_sizes_plan_and_errors():
    loss, teacher = FitNet(), torch.randn(2, 5, 8, 8)
    assert loss.spec((5, 4, 4), (5, 8, 8)).target == {"feature": (5, 4, 4)}
    target = loss.target(teacher, (5, 4, 4))
    assert target["feature"].shape == (2, 5, 4, 4)
    with pytest.raises(ValueError, match="call setup"):
        loss(torch.randn(2, 3, 4, 4), target)
    with pytest.raises(ValueError, match="student_shape"):
        loss(torch.randn(2, 5, 8, 8), target)
    crd = FitNet("crd")
    assert crd(torch.randn(2, 5, 8, 8), crd.target(torch.randn(2, 5, 4, 4), (5, 8, 8))).isfinite()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((3, 8, 8), (5, 8, 8)), ((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((3, 8, 6), (5, 7, 3))],
)
def test_crds_regressor_goes_to_the_teachers_size(student, teacher):
    torch.manual_seed(0)
    loss = FitNet("crd", "conv_bn_relu")
    loss.setup(student, teacher)
    x, y = torch.randn(4, *student, requires_grad=True), torch.randn(4, *teacher)
    target = loss.target(y, student)
    assert loss.spec(student, teacher).target == {"feature": teacher}
    assert torch.equal(target["feature"], y)
    convolution, norm, _ = loss.regressor
    z = convolution(x)
    mean, var = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), keepdim=True, unbiased=False)
    expected = ((z - mean) / (var + norm.eps).sqrt()).relu()
    torch.testing.assert_close(loss(x, target), (expected - y).square().mean())
    loss(x, target).backward()
    assert all(p.grad is not None for p in loss.parameters())


def test_regressors_that_do_not_fit():
    loss = FitNet("crd", "conv_bn_relu")
    for run in (loss.setup, loss.spec):
        with pytest.raises(ValueError, match=r"4×4.*12×12"):
            run((3, 4, 4), (5, 12, 12))
    with pytest.raises(ValueError, match="equal channels"):
        FitNet(regressor="none").spec((3, 4, 4), (5, 4, 4))
    with pytest.raises(ValueError, match="conv1x1, conv_bn_relu, none"):
        FitNet(regressor="linear")  # type: ignore[arg-type]
    assert FitNet(regressor="none").target_key == FitNet().target_key != loss.target_key
