"""The record: a continued run holds each step once, whatever an earlier start has written after its last checkpoint; its commit."""

import logging
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.outcome import board, rows

from nst.dist import Dist
from nst.storage import record
from nst.storage.record import Record, last_steps
from nst.storage.trackers import MLflow, RunInfo, TensorBoard, WandB, cut

CONFIG = {"seed": 0, "loss": {"kd": {"weight": 16.0}}}


def two_starts(tracker: Any, folder: Path) -> None:
    """Steps 1 and 2, a checkpoint after step 1, and a second start that takes step 2 again and goes on to 3."""
    training: Any = SimpleNamespace(
        dist=Dist(0, 1, torch.device("cpu")), settings=SimpleNamespace(keep_checkpoints=2, accumulate=1), steps=3,
        progress=SimpleNamespace(step=0), loader=SimpleNamespace(batch_size=4), load_state=lambda state: None,
        optimizer=SimpleNamespace(param_groups=[{"initial_lr": 0.1}]),
    )  # fmt: skip
    info = RunInfo(folder, "seed0-12345678", "digits/resnet20-resnet8/kd", CONFIG)
    draw = lambda: {"neurons/student": torch.rand(3, 8, 8)}  # noqa: E731
    with Record(training, info, {"own": tracker()}, draw=draw) as first:
        first.draw_heatmaps(0)
        first.log("train", 1, {"loss": 0.5, "terms": {"kd": 0.25}})
        first.save(1, {"last": None})
        first.log("train", 2, {"loss": 0.375})
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')  # cut off by a crash
    with Record(training, info, {"own": tracker()}) as second:
        for step, loss in ((2, 0.375), (3, 0.25)):
            second.log("train", step, {"loss": loss})
        second.log("eval", 3, {"top1": 75.0})
    assert [(row["kind"], row["step"]) for row in rows(folder)] == [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("eval", 3),
    ]


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
    assert (run.info.run_name, run.info.status) == ("seed0-12345678", "FINISHED")
    assert run.data.tags["nst.group"] == "digits/resnet20-resnet8/kd"
    assert [f.path for f in client.list_artifacts(run.info.run_id) if f.path.endswith(".png")]


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
    about = ("seed0-12345678", "digits/resnet20-resnet8/kd", CONFIG, first["id"])
    assert (second["name"], second["group"], second["config"], second["id"]) == about
    assert [start.status for start in starts] == [0, 0]


def test_wandb_without_a_login_says_what_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"API key.*tracker\.wandb\.mode=offline needs no account"):
        WandB().start(RunInfo(tmp_path, "seed0", "kd", {}), False, None)


def test_what_is_not_installed_and_rows_that_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nst.storage.trackers.find_spec", lambda name: None)
    for tracker in (WandB, MLflow):
        with pytest.raises(ValueError, match=rf"pip install 'nst\[{tracker.__name__.lower()}\]'"):
            tracker()
    assert last_steps(tmp_path / "metrics.jsonl") == {}
    with caplog.at_level(logging.WARNING):
        cut(tmp_path / "metrics.jsonl", 1000)
    assert "has 0 bytes, 1000 when the checkpoint was written: rows are lost" in caplog.text


def test_the_commit_is_that_of_the_packages_own_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a repository that only contains the installed package."""

    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.check_output(["git", *settings, *arguments], cwd=tmp_path, text=True).strip()

    installed = tmp_path / ".venv" / "nst" / "storage" / "record.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("# installed\n")
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "a user's own project")
    monkeypatch.setattr(record, "__file__", str(installed))
    assert record.commit() is None
    git("add", ".")
    git("commit", "--message", "the source tree")
    assert record.commit() == git("rev-parse", "HEAD")
    installed.write_text("# changed\n")
    assert record.commit() == git("rev-parse", "HEAD") + "+dirty"
