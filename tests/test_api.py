"""Runs from Python: the command's folders and results, errors that can be caught, and objects instead of configuration."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import nst
from nst import build
from nst.cli.compose import composed
from nst.cli.train import run as run_command
from nst.losses import AT
from nst.models import resnet8


def test_a_run_is_that_of_the_command(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = nst.train(*tiny, "loss=kd")
    command = run_command(composed([*tiny, "loss=kd"]))
    assert command["was_finished"]
    assert command["folder"] == str(run.folder)
    metrics = run.metrics
    assert metrics[metrics["kind"] == "eval"]["top1"].iloc[-1] == run.summary["last"]["top1"]
    assert "terms.kd" in metrics
    frame = nst.runs()
    assert [*frame["state"]] == ["finished", "finished"]
    assert frame.set_index("loss")["last"]["kd"] == run.summary["test"]["top1"]
    student = run.student()
    assert not student.training
    settings = build.settings(composed([*tiny, "loss=kd"]))
    data = build.dataset(settings)
    labels, pixels = data.test.labels, data.test.images.float() / 255
    accuracy = 100 * (student(pixels).argmax(1) == labels).double().mean()
    assert float(accuracy) == pytest.approx(run.summary["test"]["top1"])
    assert isinstance(run.student("best"), nn.Module)


def test_errors_are_exceptions(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, told in {
        ("modle=resnet8",): "did you mean model",
        ("data=folder",): "`data.num_classes` is required",
    }.items():
        with pytest.raises(ValueError, match=told):
            nst.train(*words)
    planned = nst.train(*tiny, "dry_run=true")
    with pytest.raises(ValueError, match="is not finished"):
        _ = planned.summary
    assert not planned.folder.exists()
    with pytest.raises(FloatingPointError, match="terms not finite: ce; there is no checkpoint yet"):
        nst.train(*tiny, "loss=ce", "optim.lr=1e30")


class Blobs(Dataset[tuple[torch.Tensor, int]]):
    """Noisy images whose bright row is their class; the noise is a random transform."""

    def __init__(self, count: int) -> None:
        self.count, self.last = count, -1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.rand(1, 8, 8)
        image[:, index % 4] += 1
        return image, index % 4


def networks() -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return resnet8(num_classes=4, in_channels=1), resnet8(num_classes=4, in_channels=1)


def test_objects_learn_by_the_same_loop_and_continue_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = {"kd": 4.0, "nst_poly": 10.0, "mine": (100.0, AT())}

    def start(folder: Path | None, epochs: int = 4) -> nst.Run:
        student, teacher = networks()
        train, test = Blobs(48), Blobs(20)
        return nst.distil(student, teacher, loss, train, test, epochs=epochs, batch_size=16, lr=0.05, folder=folder)

    whole = start(None)
    assert {"terms.ce", "terms.kd", "terms.nst_poly", "terms.mine"} <= set(whole.metrics)
    assert whole.summary["test"]["top1"] > 40
    assert not whole.student().training
    step = nst.Training.step

    def stopping(self: nst.Training, *given: object) -> None:
        if self.progress.step == 7:
            raise nst.Interrupted(15)
        step(self, *given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(nst.Training, "step", stopping)
    with pytest.raises(nst.Interrupted):
        start(tmp_path / "run")
    monkeypatch.setattr(nst.Training, "step", step)
    continued = start(tmp_path / "run")
    for a, b in zip(whole.student().state_dict().values(), continued.student().state_dict().values(), strict=True):
        assert torch.equal(a, b)
    before = (tmp_path / "run" / "metrics.jsonl").stat()
    again = start(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").stat() == before
    assert torch.equal(next(again.student().parameters()), next(continued.student().parameters()))
    with pytest.raises(ValueError, match=r"holds another run: trainer.epochs: 4 there, 5 now"):
        start(tmp_path / "run", epochs=5)
    loss["mine"] = (100.0, AT(p=3))
    with pytest.raises(ValueError, match=r"holds another run: loss.mine.class: .* there, .* now"):
        start(tmp_path / "run")


def test_objects_that_do_not_fit_are_named(tmp_path: Path) -> None:
    student, teacher = networks()
    images, image = Blobs(8), torch.rand(1, 8, 8)
    norm = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))
    good: list[Any] = [(image, torch.tensor([1]))] * 5
    cases: list[tuple[dict[str, Any], str]] = [
        ({"loss": {"kdd": 1.0}}, "loss kdd: there is none of this name; .*, kd, "),
        ({"teacher": None}, "kd learns from a teacher"),
        ({"loss": {"kd": -1.0}}, "loss kd: weight -1.0; a finite number"),
        ({"train": [("a", 1)]}, "images that are str; a float32 tensor"),
        ({"train": [*good, (image, 4)]}, "image 5: its label is 4; a class from 0 to 3"),
        ({"train": [*good, (image[:, :7], 1)]}, r"image 5 is \(1, 7, 8\) torch.float32; \(1, 8, 8\) float32 is needed"),
        ({"train": DataLoader(images)}, "not loaders: pass each loader's .dataset"),
        ({"test": []}, "data set is empty"),
        ({"epochs": 0}, "epochs=0"),
        ({"student": norm, "batch_size": 7}, "leaves a single image, on which Sequential cannot"),
        ({"trainer": nst.TrainerConfig(mixup=1.0)}, "mixup"),
        ({"trainer": nst.TrainerConfig(patience=1)}, "patience"),
    ]
    fitting = {"student": student, "teacher": teacher, "loss": {"kd": 1.0}, "train": images, "test": images}
    for case, told in cases:
        with pytest.raises(ValueError, match=told):
            nst.distil(**{**fitting, "epochs": 1, **case})
