"""Whole runs on the embedded digits, shrunken to seconds."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from tests.conftest import Compose
from torch.nn import functional as F

from nst import build
from nst.cli.train import run
from nst.data.batch import MixingLoader
from nst.data.memory import MemorySplit
from nst.loop import ONE
from nst.models import resnet8
from nst.models.weights import save_weights
from nst.run import prepare_teacher, set_threads
from nst.storage.folder import run_folder


def events(folder: str, kind: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_a_run_trains_its_teacher_once_and_writes_everything(
    compose: Compose, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(compose(*tiny, "loss=[kd,nst_poly]"))
    folder = Path(summary["folder"])
    assert folder.parts[-4:-1] == ("digits", "resnet8-resnet8", "kd+nst_poly")
    assert summary["test"]["images"] == 360
    assert summary["steps"] == 2 * 3
    written = json.loads((folder / "summary.json").read_text())
    assert written["teacher"]["sha256"]
    assert written["config"]["loss"]["kd"]["weight"] == 16
    assert written["hardware"]["device"]
    with safe_open(folder / "student.safetensors", framework="pt") as f:
        assert f.metadata()["arch"] == "resnet8"
        assert f.get_tensor("fc.weight").shape == (10, 64)
    lines = events(summary["folder"], "train")
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    terms = lines[0]["terms"]
    assert isinstance(terms, dict)
    assert lines[0]["loss"] == pytest.approx(terms["ce"] + 16 * terms["kd"] + 50 * terms["nst_poly"], rel=1e-5)
    assert [line["step"] for line in events(summary["folder"], "eval")] == [3, 6]
    assert list((folder / "tensorboard").iterdir())
    teachers = list(folder.parents[2].glob("none-resnet8/ce/*/summary.json"))
    assert len(teachers) == 1
    capsys.readouterr()

    stamp = teachers[0].stat().st_mtime_ns
    assert run(compose(*tiny, "loss=at"))["teacher"]["sha256"] == written["teacher"]["sha256"]
    assert teachers[0].stat().st_mtime_ns == stamp
    assert "nothing was run" not in capsys.readouterr().out
    again = run(compose(*tiny, "loss=[kd,nst_poly]"))
    assert again["test"] == summary["test"]
    assert "nothing was run" in capsys.readouterr().out


def test_a_teacher_near_chance_or_below_the_floor_stops_the_run(
    compose: Compose, tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Near chance only one with weights of its own: that of a quick try was trained for this run."""
    weak, weights = [o for o in tiny if "min_accuracy" not in o], tmp_path / "random.safetensors"
    save_weights(weights, build.network("model", build.settings(compose(*tiny)).model, seed=1), {})
    with pytest.raises(ValueError, match=r"most frequent class gives 10\.00 %"):
        run(compose(*weak, "loss=kd", f"teacher.weights={weights}"))
    run(compose(*weak, "loss=kd", "teacher.train.optim.lr=1e-9"))
    assert "it can teach little; teacher.train.epochs" in caplog.text
    with pytest.raises(ValueError, match=r"min_accuracy=99\.5 is required"):
        run(compose(*weak, "loss=kd", "teacher.min_accuracy=99.5"))


def test_validation_images_are_held_out_and_the_test_set_is_measured_once(compose: Compose, tiny: list[str]) -> None:
    summary = run(compose(*tiny, "loss=ce", "data.validation=0.2", "data.limit=100"))
    assert summary["evaluated_on"] == "val"
    assert summary["test"]["images"] == 360
    assert summary["last"]["images"] < 360
    assert summary["test_best"]["images"] == 360
    with safe_open(Path(summary["folder"]) / "best.safetensors", framework="pt") as f:
        assert f.metadata()["epoch"] == str(summary["best"]["epoch"])


def test_the_teacher_does_not_depend_on_how_the_student_is_trained(compose: Compose, tiny: list[str]) -> None:
    def teacher(*overrides: str) -> Path:
        return run_folder(asdict(build.teacher_run(build.settings(compose(*tiny, "loss=kd", *overrides)))))

    same = ["trainer.clip_grad_norm=5", "trainer.precision=bf16", "trainer.compile=false", "trainer.accumulate=2"]
    assert teacher(*same, "seed=4", "optim.lr=0.3", "trainer.epochs=9") == teacher()
    assert teacher("teacher.seed=1") != teacher()
    assert teacher("teacher.train.epochs=2") != teacher()
    plain = compose(*tiny, "loss=ce", "teacher=none", "trainer.epochs=1")
    assert teacher() == run_folder(asdict(build.settings(plain)))


def test_a_run_of_moved_weights_is_the_same_and_of_other_weights_or_images_another(
    compose: Compose, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, moved = tmp_path / "teacher.safetensors", tmp_path / "moved.safetensors"
    save_weights(weights, resnet8(num_classes=10, in_channels=1), {})
    first = run(compose(*tiny, "loss=kd", f"teacher.weights={weights}"))
    weights.rename(moved)
    assert run(compose(*tiny, "loss=kd", f"teacher.weights={moved}"))["was_finished"]
    save_weights(weights, resnet8(num_classes=10, in_channels=1), {})
    assert run(compose(*tiny, "loss=kd", f"teacher.weights={weights}"))["folder"] != first["folder"]
    monkeypatch.setattr(MemorySplit, "fingerprint", "0" * 64)
    with pytest.raises(ValueError, match=r"is finished, but data=digits has changed.*data\.name=NAME"):
        run(compose(*tiny, "loss=kd", f"teacher.weights={moved}"))


def test_outputs_that_were_moved_are_found_from_another_folder(
    compose: Compose, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher and its cache too: known by what they are, not by a path that a summary names."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    cached = [*tiny, "loss=kd", "cache.views=2"]
    monkeypatch.chdir(tmp_path / "here")
    run(compose(*cached, "outputs=outputs"))
    Path("outputs").rename(tmp_path / "there" / "elsewhere")
    monkeypatch.chdir(tmp_path / "there")
    assert run(compose(*cached, "outputs=elsewhere"))["was_finished"]
    run(compose(*cached, "outputs=elsewhere", "seed=1"))
    assert len(list(Path().glob("elsewhere/digits/none-*/*/*"))) == 1
    assert len(list(Path().glob("elsewhere/digits/cache/*"))) == 1


@pytest.mark.parametrize(("batch", "accumulate"), [(13, 1), (16, 8)])
def test_a_batch_that_leaves_a_single_image_is_foreseen(
    compose: Compose, tiny: list[str], batch: int, accumulate: int
) -> None:
    """Only for a network that cannot take it: 40 images."""
    own = [*tiny, "loss=ce", f"trainer.batch_size={batch}", f"trainer.accumulate={accumulate}", "dry_run=true"]
    pooled = ["model._target_=tests.faults.small.Pooled", "model.name=pooled"]
    told = rf"trainer\.batch_size={batch}: .*single image.*Pooled.*more than 1 value"
    with pytest.raises(ValueError, match=told):
        run(compose(*own, *pooled))
    run(compose(*own))


@pytest.mark.parametrize(
    ("asked", "size", "variable", "threads"),
    [(None, 8, None, 1), (None, 32, None, 4), (None, 8, "4", 4), (3, 8, "4", 3)],
)
def test_threads_are_the_keys_then_the_variables_then_the_images(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, size: int, variable: str | None, threads: int
) -> None:
    before, images = torch.get_num_threads(), SimpleNamespace(size=size)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(4)
    try:
        set_threads(asked, images, ONE)  # pyright: ignore[reportArgumentType]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_teacher_and_student_see_the_same_mixed_images(compose: Compose, tiny: list[str]) -> None:
    settings = build.settings(compose(*tiny, "loss=kd", "trainer.mixup=1.0"))
    data, networks = build.dataset(settings), build.networks(settings)
    side = prepare_teacher(settings, networks, ONE, data)
    assert side.live is not None
    mixed = build.loader(settings, ONE, data, "train")
    assert isinstance(mixed, MixingLoader)
    assert not isinstance(build.loader(settings, ONE, data, "test"), MixingLoader)
    batch = next(mixed.epoch(0))
    assert not torch.equal(batch.images, data.train.render(batch.indices, batch.views))
    torch.testing.assert_close(side(batch)["kd:0"]["logits"], side.live.model(batch.images))
    logits, values = networks.distiller(batch.images, batch.labels, side(batch))
    torch.testing.assert_close(values["ce"], F.cross_entropy(logits, batch.labels))


def test_a_dry_run_prints_tries_the_teachers_weights_and_touches_nothing(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(compose("dry_run=true", "data=cifar10", "data.root=/nowhere", "loss=kd_fitnet_nst_poly")) == {}
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("resnet20", "gram", "64×8×8", "losses"))
    assert not (tmp_path / "outputs").exists()
    weights = tmp_path / "teacher.safetensors"
    save_weights(weights, build.network("model", build.settings(compose("model=resnet14")).model, seed=0), {})
    run(compose("dry_run=true", "teacher=resnet14", f"teacher.weights={weights}"))
    with pytest.raises(ValueError, match="is of another architecture"):
        run(compose("dry_run=true", "teacher=resnet20", f"teacher.weights={weights}"))
    weights.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        run(compose("dry_run=true", "teacher=resnet14", f"teacher.weights={weights}"))


@pytest.mark.filterwarnings("ignore:.*[Pp]rofiler.*")  # torch's, where it finds no GPU to trace
def test_a_profiled_run_leaves_a_trace_and_is_the_same_run(compose: Compose, tiny: list[str]) -> None:
    settings = [*tiny, "teacher=none", "loss=ce", "trainer.batch_size=4", "trainer.epochs=1"]
    summary = run(compose(*settings, "trainer.profile=true"))
    [trace] = (Path(summary["folder"]) / "profile").glob("*.pt.trace.json")
    events = json.loads(trace.read_text())["traceEvents"]
    assert (
        sum(event["name"].startswith("ProfilerStep#") for event in events if event.get("cat") == "user_annotation") == 5
    )
