"""The compiled step: refused when it departs from eager, the same after a restart."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from nst.config import TrainerConfig
from nst.data.memory import MemoryLoader, MemorySplit
from nst.data.views import ViewScheme
from nst.dist import Dist, StopFlag
from nst.distiller import Distiller, Pair, Term
from nst.layers import LOGITS, feature_shapes
from nst.losses import NST, CrossEntropy
from nst.optim import Step
from nst.teacher import LiveTeacher
from nst.training.compiled import disagreement
from nst.training.loop import Loop, Record
from nst.training.trainer import Trainer

BATCH, IMAGES = 8, 20  # two full batches and a tail of 4 an epoch


class Net(nn.Module):
    """One named convolution with its norm, and a classifier with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(4, 3)
        self.named_layers = {"last": "relu"}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.relu(self.bn(self.conv(x))).mean((2, 3))))


def loader() -> MemoryLoader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 1, 4, 4), generator=generator, dtype=torch.uint8)
    split = MemorySplit(pixels, torch.arange(IMAGES) % 3, ViewScheme(4, 1, False), (0.5,), (0.5,))
    return split.loader(BATCH, train=True)


def trainer(compile: bool, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    student, teacher = Net(), Net()
    terms = [
        Term("ce", CrossEntropy(), 1.0, (Pair(LOGITS, LOGITS),)),
        Term("nst", NST(), 50.0, (Pair("last", "last"),)),
    ]
    shapes = feature_shapes(student, ["last", LOGITS], (1, 4, 4))
    distiller = Distiller(student, terms, shapes, shapes)
    live = LiveTeacher(teacher, distiller.requests)
    here = Dist(0, 1, torch.device("cpu"))
    settings = {"epochs": 2, "batch_size": BATCH, "compile": compile, **settings}
    return Trainer(
        distiller, live, loader(), optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Step(), settings=TrainerConfig(**settings), ranks=here, seed=0,
    )  # fmt: skip


def take(it: Trainer, steps: int) -> dict[str, Tensor]:
    it.distiller.train()
    for _ in range(steps):
        epoch, first = divmod(it.progress.step, it.loader.steps)
        it.step(next(iter(it.loader.epoch(epoch, first))))
    return copy.deepcopy(it.distiller.state_dict())


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert all(torch.equal(left[key], right[key]) for key in right)


Sizes = list[int]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], Sizes]:
    """Puts `change(output)` in the place of compiled code of the student; gives the batch sizes it sees."""

    def install(change: Callable[..., Any] = lambda output: output) -> Sizes:
        sizes: Sizes = []

        def fake_compile(function: Any, **_: Any) -> Any:
            def run(*inputs: Any) -> Any:
                output = function(*inputs)
                if not isinstance(function, Distiller):
                    return output
                sizes.append(len(inputs[0]))
                return change(output)

            return run

        monkeypatch.setattr(torch, "compile", fake_compile)
        return sizes

    return install


def test_choosing_leaves_no_trace_and_the_tail_batch_stays_eager(fake: Any) -> None:
    sizes = fake()
    assert_equal(take(trainer(True), 6), take(trainer(False), 6))
    assert set(sizes) == {BATCH}
    assert len(sizes) == 1 + 4  # the comparison, and the full batches of two epochs


def doubled(output: Any) -> Any:
    logits, values = output
    return logits, {**values, "ce": 2 * values["ce"]}


def not_finite(output: Any) -> Any:
    logits, values = output
    return logits, {**values, "ce": values["ce"] + 0 * (values["ce"] - values["ce"]).sqrt()}


def failing(output: Any) -> Any:
    raise RuntimeError("no C++ compiler here\nand more")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (doubled, "loss differ"),
        (not_finite, "non-finite gradients in"),
        (failing, "RuntimeError: no C++ compiler here"),
    ],
)
def test_disagreement_or_failure_is_logged_once_and_eager_code_is_used(
    fake: Any, caplog: pytest.LogCaptureFixture, change: Any, message: str
) -> None:
    fake(change)
    it = trainer(True)
    with caplog.at_level(logging.WARNING):
        assert_equal(take(it, 4), take(trainer(False), 4))
    assert it.forward.chosen is False
    assert len(caplog.records) == 1
    assert message in caplog.text


def test_gradients_are_compared() -> None:
    loss, gradient = torch.tensor(1.0), [torch.ones(3), torch.ones(2)]
    assert disagreement((loss, gradient), (loss, gradient), "fp32") is None
    assert "gradient differ by 1.0e" in str(disagreement((loss, [2 * g for g in gradient]), (loss, gradient), "fp32"))


def test_a_continued_run_does_not_try_again_what_has_failed(fake: Any) -> None:
    fake(failing)
    first = trainer(True)
    take(first, 2)
    state = copy.deepcopy(first.state())
    sizes = fake()
    second = trainer(True)
    second.load_state(state)
    take(second, 3)
    assert second.forward.chosen is False
    assert sizes == []


@pytest.mark.compiles
def test_compiled_steps_do_what_eager_steps_do() -> None:
    """Dropout and the eager tail batches included; that a killed run continues compiled is in tests/faults/test_kill.py."""
    compiled_one = trainer(True)
    found = take(compiled_one, 5)
    assert compiled_one.forward.chosen is True
    for key, value in take(trainer(False), 5).items():
        torch.testing.assert_close(value, found[key], rtol=1e-3, atol=1e-4)


class Lines:
    """A record that keeps the printed lines."""

    def __init__(self) -> None:
        self.printed: list[str] = []

    def print(self, text: str) -> None:
        self.printed.append(text)


@pytest.mark.parametrize("compile", [True, False])
def test_it_says_that_it_compiles_before_it_does(compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own, record = trainer(compile), Lines()
    loop = Loop(own, loader(), cast(Record, record))
    monkeypatch.setattr(
        own, "compile_once", lambda batch: pytest.fail("nothing was printed") if not record.printed else False
    )
    loop.compile(next(loader().epoch(0)), StopFlag())
    assert [line.startswith("compiling the step") for line in record.printed] == [True] * compile
