"""A recipe that chooses more than what suits a data set."""

from tests.conftest import Compose

from nst import build
from nst.cli.train import run


def test_patient_composes_and_takes_two_steps(compose: Compose, tiny: list[str]) -> None:
    whole = build.settings(compose("recipe=patient", "data=cifar100", "loss=kd"))
    assert (whole.optim["_target_"], whole.optim["lr"], whole.optim["weight_decay"]) == (
        "torch.optim.AdamW",
        9.4e-4,
        0.01,
    )
    assert whole.schedule["_target_"] == "nst.optim.Cosine"
    assert (whole.trainer.epochs, whole.trainer.mixup, whole.trainer.clip_grad_norm) == (1200, 1.0, 1.0)
    teacher = whole.teacher.train
    assert (teacher.optim["_target_"], teacher.optim["lr"], teacher.epochs) == ("torch.optim.SGD", 0.05, 240)
    given = build.settings(compose("recipe=patient", "optim.lr=1e-4", "trainer=quick", "trainer.mixup=0.2"))
    assert (given.optim["lr"], given.trainer.epochs, given.trainer.mixup) == (1e-4, 2, 0.2)  # a key given by hand wins
    loss = ["loss=kd", "loss.ce.weight=0", "loss.kd.weight=1", "loss.kd.temperature=1"]
    summary = run(compose(*tiny, "recipe=patient", *loss, "data.limit=32", "trainer.epochs=1"))
    assert summary["steps"] == 2
    assert summary["config"]["trainer"]["mixup"] == 1.0
