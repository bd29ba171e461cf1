"""Trackers and logs: a continued run holds each step once, whatever an earlier start has written after its last checkpoint."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import Compose
from tests.outcome import board, rows
from torch import Tensor

from nst.cli.train import run
from nst.loop import Training
from nst.storage.record import last_steps
from nst.storage.trackers import MLflow, RunInfo, TensorBoard, Tracker, WandB, cut

CONFIG = {"seed": 0, "loss": {"kd": {"weight": 16.0}}}


def info(folder: Path) -> RunInfo:
    return RunInfo(folder, "seed0-12345678", "digits/resnet20-resnet8/kd", CONFIG)


def picture() -> Tensor:
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


def two_starts(tracker: Any, folder: Path) -> None:
    """Steps 1 and 2, a checkpoint after step 1, and a second start that takes step 2 again and goes on to 3."""
    first: Tracker = tracker()
    first.start(info(folder), {}, None)
    first.image("neurons/student", picture(), 0)
    first.scalars("train", 1, {"train/loss": 0.5, "train/terms/kd": 0.25})
    state = json.loads(json.dumps(first.state()))
    first.scalars("train", 2, {"train/loss": 0.375})
    first.close()
    second: Tracker = tracker()
    second.start(info(folder), {"train": 2}, state)
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


def test_tensorboard_touches_nothing_that_a_checkpoint_names(tmp_path: Path) -> None:
    """Sizes are looked up by the names of the event files that are there; other names are not looked at."""
    (tmp_path / "run").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    tracker = TensorBoard()
    state = {"sizes": {"../../victim": 3, str(victim): 3, "events.out.tfevents.x/../../../victim": 3}}
    tracker.start(info(tmp_path / "run"), {}, state)
    tracker.close()
    assert victim.read_text() == "precious"


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


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a W&B file: 7 bytes of header, then LevelDB's log format in blocks of 32 KiB."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_wandb_without_a_login_says_what_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"API key.*tracker\.wandb\.mode=offline needs no account"):
        WandB().start(RunInfo(tmp_path, "seed0", "kd", {}), {}, None)


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")

    def tracker() -> WandB:
        time.sleep(1.1)  # W&B calls the folder of a start by its second
        return WandB(mode="offline")

    def records() -> list[wandb_internal_pb2.Record]:
        files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
        return [wandb_internal_pb2.Record.FromString(data) for file in files for data in log_records(file.read_bytes())]

    two_starts(tracker, tmp_path)
    deadline = time.monotonic() + 60
    while sum(record.HasField("exit") for record in records()) < 2:  # W&B's own process writes, at its own pace
        assert time.monotonic() < deadline
        time.sleep(0.05)
    steps: list[tuple[int, float]] = []
    names, groups, ids, configs = set(), set(), set(), ""
    for record in records():
        if record.HasField("run"):
            names.add(record.run.display_name)
            groups.add(record.run.run_group)
            ids.add(record.run.run_id)
            configs += str(record.run.config)
        if record.HasField("history"):
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "train/loss" in values:
                steps.append((int(values["_step"]), float(values["train/loss"])))
    assert steps == [(1, 0.5), (2, 0.375), (3, 0.25)]
    assert (names, groups, len(ids)) == ({"seed0-12345678"}, {"digits/resnet20-resnet8/kd"}, 1)
    assert "kd" in configs


def test_what_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nst.storage.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'nst\[wandb\]'"):
        WandB()
    with pytest.raises(ValueError, match=r"pip install 'nst\[mlflow\]'"):
        MLflow()


def test_the_last_steps_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert last_steps(log) == {}
    lines = [{"kind": "train", "step": 4}, {"kind": "eval", "step": 4}, {"kind": "train", "step": 6}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "train", "st')
    assert last_steps(log) == {"train": 6, "eval": 4}
    assert rows.__doc__


def test_lost_rows_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        cut(tmp_path / "metrics.jsonl", 10)
    assert "metrics.jsonl has 0 bytes" in caplog.text


def test_a_tracker_that_one_start_does_without_keeps_its_history(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's files are cut back to what the last checkpoint with TensorBoard knew, not deleted."""
    step = Training.step
    words = [*tiny, "loss=ce", "trainer.checkpoint_every=1 steps", "trainer.log_every=1"]

    def stop_after(number: int, *more: str) -> None:
        def patched(self: Training, batch: Any, targets: Any) -> None:
            if self.progress.step == number:
                raise KeyboardInterrupt
            step(self, batch, targets)

        monkeypatch.setattr(Training, "step", patched)
        with pytest.raises(KeyboardInterrupt):
            run(compose(*words, *more))

    stop_after(2)
    stop_after(4, "tracker=[]")
    monkeypatch.setattr(Training, "step", step)
    folder = Path(run(compose(*words))["folder"])
    seen = [number for name, number, _ in board(folder) if name == "train/loss"]
    assert seen == [1, 2, 5, 6]
