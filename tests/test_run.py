"""Whole runs on the embedded digits, shrunken to seconds."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors import safe_open
from tests.conftest import Compose

from nst import build
from nst.cli.train import run
from nst.data.memory import MemorySplit
from nst.models import resnet8
from nst.models.weights import save_weights
from nst.storage.folder import run_folder


def events(folder: str, kind: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_a_run_trains_its_teacher_once_and_writes_everything(
    compose: Compose, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(compose(*tiny, "loss=[kd,nst_poly]", "trainer.heatmaps=true"))
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
    again = run(compose(*tiny, "loss=[kd,nst_poly]", "trainer.heatmaps=true"))
    assert again["test"] == summary["test"]
    assert "nothing was run" in capsys.readouterr().out


def test_a_teacher_near_chance_or_below_the_floor_stops_the_run(
    compose: Compose, tiny: list[str], tmp_path: Path
) -> None:
    weak, weights = [o for o in tiny if "min_accuracy" not in o], tmp_path / "random.safetensors"
    save_weights(weights, build.network("model", build.settings(compose(*tiny)).model, seed=1), {})
    with pytest.raises(ValueError, match=r"most frequent class gives 10\.00 %, so it may be at chance"):
        run(compose(*weak, "loss=kd", f"teacher.weights={weights}"))
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


def test_a_run_of_moved_weights_is_the_same_and_of_other_weights_another(
    compose: Compose, tiny: list[str], tmp_path: Path
) -> None:
    weights, moved = tmp_path / "teacher.safetensors", tmp_path / "moved.safetensors"
    save_weights(weights, resnet8(num_classes=10, in_channels=1), {})
    first = run(compose(*tiny, "loss=kd", f"teacher.weights={weights}"))
    weights.rename(moved)
    assert run(compose(*tiny, "loss=kd", f"teacher.weights={moved}"))["was_finished"]
    save_weights(weights, resnet8(num_classes=10, in_channels=1), {})
    assert run(compose(*tiny, "loss=kd", f"teacher.weights={weights}"))["folder"] != first["folder"]


def test_a_finished_run_is_not_passed_off_as_one_of_other_images(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(compose(*tiny, "loss=ce", "teacher=none"))
    monkeypatch.setattr(MemorySplit, "fingerprint", "0" * 64)
    with pytest.raises(ValueError, match="is finished, but data=digits has changed"):
        run(compose(*tiny, "loss=ce", "teacher=none"))


def test_outputs_that_were_moved_are_found_from_another_folder(
    compose: Compose,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The teacher too, live and with a cache: known by what it is, not by a path that a summary names."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    kinds = (["loss=kd"], ["loss=kd", "cache.views=2"])
    monkeypatch.chdir(here)
    for kind in kinds:
        run(compose(*tiny, "outputs=outputs", *kind))
    (here / "outputs").rename(there / "elsewhere")
    monkeypatch.chdir(there)
    capsys.readouterr()
    for kind in kinds:
        assert run(compose(*tiny, "outputs=elsewhere", *kind))["was_finished"]
        run(compose(*tiny, "outputs=elsewhere", "seed=1", *kind))
    assert "trained first" not in capsys.readouterr().out
    assert len(list(there.glob("elsewhere/digits/none-*/*/*"))) == 1
    assert len(list(there.glob("elsewhere/digits/cache/*"))) == 1


@pytest.mark.parametrize(("batch", "accumulate"), [(13, 1), (16, 8)])
def test_a_batch_that_leaves_a_single_image_is_foreseen(
    compose: Compose, tiny: list[str], batch: int, accumulate: int
) -> None:
    """Only for a network that cannot take it: 40 images."""
    own = [*tiny, "loss=ce", f"trainer.batch_size={batch}", f"trainer.accumulate={accumulate}"]
    pooled = ["model._target_=tests.faults.small.Pooled", "model.name=pooled"]
    with pytest.raises(ValueError, match=rf"trainer\.batch_size={batch}: .*single image.*pooled.*more than 1 value"):
        run(compose(*own, *pooled))
    if accumulate == 1:
        run(compose(*own, *pooled, "trainer.batch_size=14"))
        run(compose(*own))


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
    assert run(compose(*settings))["was_finished"]
