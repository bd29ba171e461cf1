"""Trackers and logs: a continued run holds each step once, whatever an earlier start has written after its last checkpoint."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.outcome import board

from nst.storage.record import last_steps
from nst.storage.trackers import MLflow, RunInfo, TensorBoard, Tracker, WandB, cut

CONFIG = {"seed": 0, "loss": {"kd": {"weight": 16.0}}}


def two_starts(tracker: Any, folder: Path) -> None:
    """Steps 1 and 2, a checkpoint after step 1, and a second start that takes step 2 again and goes on to 3."""
    info = RunInfo(folder, "seed0-12345678", "digits/resnet20-resnet8/kd", CONFIG)
    first: Tracker = tracker()
    first.start(info, {}, None)
    first.image("neurons/student", torch.rand(3, 8, 8), 0)
    first.scalars("train", 1, {"train/loss": 0.5, "train/terms/kd": 0.25})
    state = json.loads(json.dumps(first.state()))
    first.scalars("train", 2, {"train/loss": 0.375})
    first.close()
    second: Tracker = tracker()
    second.start(info, {"train": 2}, state)
    for step, loss in ((2, 0.375), (3, 0.25)):
        second.scalars("train", step, {"train/loss": loss})
    second.scalars("eval", 3, {"eval/top1": 75.0})
    second.close()


def test_tensorboard(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "notes.txt").write_text("the user's own")
    two_starts(TensorBoard, tmp_path)
    (tmp_path / "tensorboard" / "notes.txt").rename(tmp_path / "kept")  # what the project has not written stays
    scalars = [value for value in board(tmp_path) if "neurons" not in value[0]]
    assert scalars == [
        ("eval/top1", 3, 75.0), ("train/loss", 1, 0.5), ("train/loss", 2, 0.375), ("train/loss", 3, 0.25),
        ("train/terms/kd", 1, 0.25),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_mlflow_on_a_local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    two_starts(lambda: MLflow(uri=uri), tmp_path)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("nst").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.375), (3, 0.25)]
    assert run.data.metrics["eval/top1"] == 75.0
    assert run.data.params["loss.kd.weight"] == "16.0"
    assert run.info.run_name == "seed0-12345678"
    assert run.data.tags["nst.group"] == "digits/resnet20-resnet8/kd"
    assert run.info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(run.info.run_id) if f.path.endswith(".png")]


def test_wandb_without_a_login_says_what_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"API key.*tracker\.wandb\.mode=offline needs no account"):
        WandB().start(RunInfo(tmp_path, "seed0", "kd", {}), {}, None)


@dataclass
class Sent:
    """A run of W&B: what it was started with, and what was sent to it."""

    about: dict[str, Any]
    steps: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    step: int = 0
    status: int | None = None

    def log(self, values: dict[str, Any], step: int) -> None:
        self.steps.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.status = exit_code


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    starts: list[Sent] = []
    monkeypatch.setattr(wandb, "init", lambda **about: starts.append(Sent(about)) or starts[-1])
    monkeypatch.setattr(wandb, "Image", lambda pixels: pixels.shape)
    two_starts(lambda: WandB(mode="offline"), tmp_path)
    sent = [(step, value) for start in starts for step, values in start.steps for value in values.values()]
    assert sent == [(0, (8, 8, 3)), (1, 0.5), (1, 0.25), (2, 0.375), (3, 0.25), (3, 75.0)]
    first, second = (start.about for start in starts)
    assert (first["resume"], second["resume"]) == (None, "allow")
    assert first["id"] == second["id"]
    about = ("seed0-12345678", "digits/resnet20-resnet8/kd", CONFIG)
    assert (second["name"], second["group"], second["config"]) == about
    assert [start.status for start in starts] == [0, 0]


def test_what_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nst.storage.trackers.find_spec", lambda name: None)
    for tracker in (WandB, MLflow):
        with pytest.raises(ValueError, match=rf"pip install 'nst\[{tracker.__name__.lower()}\]'"):
            tracker()


def test_whole_lines_of_a_log_count_and_lost_ones_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "metrics.jsonl"
    assert last_steps(log) == {}
    lines = [{"kind": "train", "step": 4}, {"kind": "eval", "step": 4}, {"kind": "train", "step": 6}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "train", "st')
    assert last_steps(log) == {"train": 6, "eval": 4}
    with caplog.at_level(logging.WARNING):
        cut(log, 1000)
    assert "1000 when the checkpoint was written: rows are lost" in caplog.text
