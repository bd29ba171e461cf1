"""One step: the files and functions it passes through, what it counts, clips and averages; when it is compiled; when a run says more."""

import copy
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.conftest import Compose
from tests.faults.small import Small
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import nst
from nst import build
from nst.config import TrainerConfig
from nst.data.memory import MemorySplit, ViewScheme
from nst.dist import Dist
from nst.distiller import Distiller, Pair, Term
from nst.evaluate import Metrics
from nst.layers import LOGITS, feature_shapes
from nst.loop import Loop, Training
from nst.losses import NST, CrossEntropy
from nst.optim import Step
from nst.run import prepare_teacher
from nst.storage.folder import has_collapsed
from nst.teacher import LiveTeacher, Teacher
from nst.trial import compile_step

BATCH, IMAGES = 8, 20  # two full batches and a tail of 4 an epoch
WAITS = {"aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}
"""What waits on a GPU: a tensor made from Python's numbers, a tensor's value in Python, a size that depends on values."""


def training(device: str = "cpu", **settings: Any) -> tuple[Training, Teacher]:
    torch.manual_seed(0)
    student, teacher = Small(3, 1), Small(3, 1)
    nst_term = Term("nst", NST(), 50.0, (Pair("last", "last"),))
    terms = [Term("ce", CrossEntropy(), 1.0, (Pair(LOGITS, LOGITS),)), nst_term]
    shapes = feature_shapes(student, ["last", LOGITS], (1, 4, 4))
    distiller = Distiller(student, terms, shapes, shapes)
    pixels = torch.randint(0, 256, (IMAGES, 1, 4, 4), dtype=torch.uint8)
    split = MemorySplit(pixels, torch.arange(IMAGES) % 3, ViewScheme(4, 1, False), (0.5,), (0.5,))
    made = Training(
        distiller, split.loader(BATCH, train=True), optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4), schedule=Step(),
        settings=TrainerConfig(**{"epochs": 2, "batch_size": BATCH, "compile": False, **settings}),
        dist=Dist(0, 1, torch.device(device)),
    )  # fmt: skip
    return made, Teacher((LiveTeacher(teacher.to(device), distiller.target_specs),))


def take(it: Training, teacher: Teacher, steps: int) -> dict[str, Tensor]:
    """Some steps as a loop takes them, compiled where that is asked for; the state they lead to."""
    it.distiller.train()
    for _ in range(steps):
        batch, targets = next(teacher.targets(it.loader.epoch(*divmod(it.progress.step, it.loader.steps))))
        if it.compiles is not False and it.compiled is None:
            compile_step(it, teacher, batch)
        it.step(batch, targets)
    return copy.deepcopy(it.distiller.state_dict())


def test_a_step_is_read_in_nine_files(compose: Compose, tiny: list[str]) -> None:
    """From its batch to its update, NST with a live teacher at plain settings; docs/concepts.md names the files."""
    settings = build.settings(compose(*tiny, "loss=nst_poly"))
    dist, data, networks = Dist(0, 1, torch.device("cpu")), build.dataset(settings), build.networks(settings)
    teacher = prepare_teacher(settings, networks, dist, data)
    loader, made = build.loader(settings, dist, data, "train"), build.optimization(settings)
    it = Training(networks.distiller, loader, **made, settings=settings.trainer)
    first, second, *_ = loader.epoch(0)
    it.step(*next(teacher.targets([first])))  # what is set up by the first step
    package = f"{Path(nst.__file__).parent}/"
    seen: set[tuple[str, str]] = set()

    def trace(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package):
            seen.add((code.co_filename.removeprefix(package), code.co_qualname))

    sys.setprofile(trace)
    try:
        it.step(*next(teacher.targets([second])))
    finally:
        sys.setprofile(None)
    files = {file for file, _ in seen}
    page = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text()
    assert len(files) <= 9, files
    assert len([name for _, name in seen if not name.endswith((">", "Teacher.targets"))]) <= 45, seen
    assert not [file for file in files if f"`{file}`" not in page]


class Calls(TorchDispatchMode):
    """Collects the names of the operators called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, {"clip_grad_norm": 0.1, "accumulate": 2, "ema": 0.9}])
def test_no_operator_of_a_step_waits(settings: dict[str, Any]) -> None:
    it, teacher = training(**settings)
    pair = next(teacher.targets(it.loader.epoch(0)))
    it.dist = Dist(0, 1, torch.device("meta"))  # on a CPU, where nothing waits, a step looks whether it was finite
    with Calls() as calls:
        it.step(*pair)
    assert "aten::_fused_sgd_" in calls.names
    assert not calls.names & WAITS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_never_waits_for_the_gpu() -> None:
    it, teacher = training("cuda", clip_grad_norm=0.1)
    pairs = teacher.targets([type(batch)(*(values.cuda() for values in batch)) for batch in it.loader.epoch(0)])
    it.step(*next(pairs))  # libraries start
    torch.cuda.set_sync_debug_mode("error")
    try:
        it.step(*next(pairs))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_gradients_are_clipped_only_where_that_is_asked_for() -> None:
    """The first step moves the weights by the learning rate times the gradient."""
    moved, logged = {}, {}
    for limit in (None, 0.1, 1e6):
        it, teacher = training(clip_grad_norm=limit)
        for group in it.optimizer.param_groups:
            group["weight_decay"] = 0.0
        before = nn.utils.parameters_to_vector(it.parameters).detach()
        take(it, teacher, 1)
        means, moves = it.means(), nn.utils.parameters_to_vector(it.parameters) - before
        moved[limit], logged[limit] = float(moves.detach().norm()) / means["lr"], means["grad_norm"]
    assert logged[None] == logged[0.1] == logged[1e6] > 0.2
    assert moved[None] == moved[1e6] == pytest.approx(logged[None], rel=1e-4)
    assert moved[0.1] == pytest.approx(0.1, rel=1e-4)


def test_training_accuracy_of_mixed_images_counts_the_larger_part() -> None:
    it, teacher = training()
    it.distiller.eval()  # no draws
    batch, targets = next(teacher.targets(it.loader.epoch(0)))
    answers = copy.deepcopy(it.distiller.student)(batch.images).argmax(1)
    shares = 0.6 * F.one_hot(answers, 3) + 0.4 * F.one_hot((answers + 1) % 3, 3)
    it.step(batch._replace(labels=shares), targets)
    assert it.means()["top1"] == 100


def test_the_average_is_what_its_equation_says() -> None:
    it, teacher = training(ema=0.8)
    assert it.average is not None
    by_hand = copy.deepcopy(it.distiller.student.state_dict())
    for _ in range(3):
        take(it, teacher, 1)
        for name, value in it.distiller.student.state_dict().items():
            by_hand[name] = 0.8 * by_hand[name] + 0.2 * value if value.is_floating_point() else value.clone()
    torch.testing.assert_close(it.average.values, by_hand)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """`fake(change)` puts `change(output)` in the place of compiled code of the student; gives the batch sizes it sees."""

    def install(change: Callable[..., Any] = lambda output: output) -> list[int]:
        sizes: list[int] = []

        def run(function: Any, *inputs: Any) -> Any:
            output = function(*inputs)
            if not isinstance(function, Distiller):
                return output
            sizes.append(len(inputs[0]))
            return change(output)

        monkeypatch.setattr(torch, "compile", lambda function, **_: partial(run, function))
        return sizes

    return install


def test_comparing_leaves_no_trace_and_the_tail_batch_stays_eager(fake: Any) -> None:
    sizes = fake()
    torch.testing.assert_close(take(*training(compile=True), 6), take(*training(), 6), rtol=0, atol=0)
    assert set(sizes) == {BATCH}
    assert len(sizes) == 1 + 4  # the comparison, and the full batches of two epochs


def no_compiler(ce: Tensor) -> Tensor:
    raise RuntimeError("no C++ compiler here\nand more")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ce: 2 * ce, "loss differ"),
        (lambda ce: 2 * ce - ce.detach(), "gradient differ"),
        (lambda ce: ce + 0 * (ce - ce).sqrt(), "non-finite gradients in"),
        (no_compiler, "RuntimeError: no C++ compiler here"),
    ],
)
def test_disagreement_or_failure_is_logged_once_and_eager_code_is_used(
    fake: Any, caplog: pytest.LogCaptureFixture, change: Any, message: str
) -> None:
    fake(lambda output: (output[0], output[1] | {"ce": change(output[1]["ce"])}))
    it, teacher = training(compile=True)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(take(it, teacher, 4), take(*training(), 4), rtol=0, atol=0)
    assert it.compiles is False
    assert len(caplog.records) == 1
    assert message in caplog.text
    again, teacher = training(compile=True)  # a continued run does not try again
    again.load_state(copy.deepcopy(it.state()))
    sizes = fake()
    take(again, teacher, 1)
    assert sizes == []


def test_a_run_says_that_it_has_collapsed_and_what_to_try() -> None:
    """When half of what was won over chance is lost; with two classes, where the best accuracy is never twice chance."""
    assert has_collapsed(top1=31.0, best=70.0, chance=10.0)
    assert not has_collapsed(top1=41.0, best=70.0, chance=10.0)
    assert not has_collapsed(top1=1.0, best=2.5, chance=1.0)  # 100 classes: 1.5 points are noise
    lines: list[str] = []
    nothing = dict.fromkeys(("log", "save", "save_best"), lambda *_: None)
    record: Any = SimpleNamespace(last=None, print=lines.append, metadata={"arch": "small"}, **nothing)
    it, teacher = training(epochs=3)
    accuracies = iter((90.0, 88.0, 52.5))
    around = Loop(it, teacher, lambda *_: Metrics(1.0, next(accuracies), 99.0, 100), record, chance=50.0)
    for _ in range(3):
        around.finish_epoch()
    (line,) = [line for line in lines if "collapsed" in line]
    assert line.startswith("the run has collapsed: top-1 52.50 % after 90.00 % at best;")
    assert "trainer.clip_grad_norm=2" in line
