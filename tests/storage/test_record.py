"""The record: a continued run holds each step once, whatever an earlier start has written after its last checkpoint; its commit."""

import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tests.outcome import board, rows

from nst.dist import Dist
from nst.storage import record
from nst.storage.record import Record
from nst.storage.trackers import MLflow, TensorBoard, WandB

CONFIG = {"seed": 0, "loss": {"kd": {"weight": 16.0}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "digits" / "resnet20-resnet8" / "kd" / "seed0-12345678"
    made.mkdir(parents=True)
    return made


def two_starts(tracker: Any, folder: Path) -> None:
    """Steps 1 and 2, a checkpoint after step 1, and a second start that takes step 2 again and goes on to 3."""
    training: Any = SimpleNamespace(
        dist=Dist(0, 1, torch.device("cpu")), settings=SimpleNamespace(keep_checkpoints=2, accumulate=1), steps=3,
        progress=SimpleNamespace(step=0), loader=SimpleNamespace(batch_size=4), load_state=lambda state: None,
        optimizer=SimpleNamespace(param_groups=[{"initial_lr": 0.1}]),
    )  # fmt: skip
    with Record(training, folder, CONFIG, {"own": tracker()}) as first:
        first.log("train", 1, {"loss": 0.5, "terms": {"kd": 0.25}})
        first.save(1, {"last": None})
        first.log("train", 2, {"loss": 0.375})
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')  # cut off by a crash
    with Record(training, folder, CONFIG, {"own": tracker()}) as second:
        for step, loss in ((2, 0.375), (3, 0.25)):
            second.log("train", step, {"loss": loss})
        second.log("eval", 3, {"top1": 75.0})
    taken = [(row["kind"], row["step"]) for row in rows(folder)]
    assert taken == [("train", 1), ("train", 2), ("train", 3), ("eval", 3)]


def test_tensorboard(folder: Path) -> None:
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "notes.txt").write_text("the user's own")
    two_starts(TensorBoard, folder)
    (folder / "tensorboard" / "notes.txt").rename(folder / "kept")  # what the project has not written stays
    assert board(folder) == [
        ("eval/top1", 3, 75.0), ("train/loss", 1, 0.5), ("train/loss", 2, 0.375), ("train/loss", 3, 0.25),
        ("train/terms/kd", 1, 0.25),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_mlflow_on_a_local_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (folder / "store").as_uri()
    two_starts(lambda: MLflow(uri=uri), folder)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("nst").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.375), (3, 0.25)]
    assert run.data.metrics["eval/top1"] == 75.0
    assert run.data.params["loss.kd.weight"] == "16.0"
    assert (run.info.run_name, run.info.status) == ("seed0-12345678", "FINISHED")
    assert run.data.tags["nst.group"] == "digits/resnet20-resnet8/kd"


def test_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    starts: list[tuple[dict[str, Any], Mock]] = []  # what a run was started with, and the run

    def init(**about: Any) -> Mock:
        starts.append((about, Mock(step=0)))
        return starts[-1][1]

    monkeypatch.setattr(wandb, "init", init)
    two_starts(lambda: WandB(mode="offline"), folder)
    calls = [call for _, run in starts for call in run.log.call_args_list]
    sent = [(call.kwargs["step"], value) for call in calls for value in call.args[0].values()]
    assert sent == [(1, 0.5), (1, 0.25), (2, 0.375), (3, 0.25), (3, 75.0)]
    (first, _), (second, _) = starts
    assert (first["resume"], second["resume"]) == (None, "allow")
    about = ("seed0-12345678", "digits/resnet20-resnet8/kd", CONFIG, first["id"])
    assert (second["name"], second["group"], second["config"], second["id"]) == about
    for _, run in starts:
        run.finish.assert_called_once_with(exit_code=0)


def test_what_a_tracker_needs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login, where there is none; a package that is not installed."""
    if find_spec("wandb"):
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        with pytest.raises(ValueError, match=r"API key.*tracker\.wandb\.mode=offline"):
            WandB().start(tmp_path, {}, False, None)
    monkeypatch.setattr("nst.storage.trackers.find_spec", lambda name: None)
    for tracker in (WandB, MLflow):
        with pytest.raises(ValueError, match=rf"pip install 'nst\[{tracker.__name__.lower()}\]'"):
            tracker()


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
