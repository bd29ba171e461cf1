"""On a GPU every loss equals its float64 value and gradient on the CPU, some of them compiled."""

import pytest
import torch
from tests.losses.every import LOSSES as EVERY, Case
from tests.losses.reference import feature, value_and_gradient

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

COMPILED = {
    "NST linear": 160,
    "NST gram": 160,
    "NST stream": 160,
    "NST gaussian": 160,
    "AT": 160,
    "FitNet": 96,
}  # channels


@pytest.mark.parametrize(("name", "channels"), COMPILED.items())
@pytest.mark.filterwarnings("default")
def test_compiled_equals_the_cpu_in_float64(name, channels):
    """Features of sizes that fill some blocks and not others."""
    student, teacher = feature(0, (9, channels, 7, 7), "relu"), feature(1, (9, 96, 7, 7), "signed")
    loss = EVERY[name]()

    def step(x, t):
        return loss(x, loss.target(t, (channels, 7, 7)))

    expected, expected_gradient = value_and_gradient(lambda x: step(x, teacher), student)
    run = torch.compile(step, fullgraph=True)
    value, gradient = value_and_gradient(lambda x: run(x, teacher.float().cuda()), student.float().cuda())
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-7)
    assert (gradient.cpu() - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.filterwarnings("default")
def test_every_loss_equals_the_cpu(name):
    """Value and gradients of features and parameters; buffers, draws and scalars of the run (on the CPU) included."""
    case = Case(name, batch=6)
    expected = case.step(case.targets())
    case.loss.to("cuda")
    case.students, case.teachers = [x.to("cuda") for x in case.students], [x.to("cuda") for x in case.teachers]
    case.extra = {key: value.to("cuda") if value.ndim else value for key, value in case.extra.items()}
    for value, wanted in zip(case.step(case.targets()), expected, strict=True):
        assert (value.cpu() - wanted).norm() < 1e-3 * wanted.norm() + 1e-6
