"""An exported student is the trained student: same logits, from files that need none of our code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shrunken import composed
from torch import nn

from nst.export import export, finished_run, load_student
from nst.export.card import beside_teacher, wilson
from nst.export.formats import capture, formats_to_write
from nst.export.measure import cost, flops, latencies
from nst.export.preprocess import preprocessing
from nst.models import resnet8
from nst.models.resnet import CifarResNet

IMAGES = torch.arange(3 * 64, dtype=torch.float32).reshape(3, 1, 8, 8) / 192 - 0.5

# Loads the files as a user without this project does: no path to it, an import of it is an error.
ALONE = """
import sys
sys.modules["nst"] = None
import torch
images = torch.arange(3 * 64, dtype=torch.float32).reshape(3, 1, 8, 8) / 192 - 0.5
for kind in sys.argv[1:]:
    if kind == "torch":
        logits = torch.export.load("student.pt2").module()(images)
    else:
        import onnxruntime
        logits = torch.from_numpy(onnxruntime.InferenceSession("student.onnx").run(None, {"images": images.numpy()})[0])
    print(logits.double().flatten().tolist())
"""


def test_captured_files_work_without_the_package(exported: tuple[Path, dict[str, Any]], finished: Path) -> None:
    folder, report = exported
    kinds = [kind for kind in ("torch", "onnx") if kind in report["files"]]  # onnx is an extra
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    shown = subprocess.run(
        [sys.executable, "-c", ALONE, *kinds], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    expected = finished_run(finished).student()(IMAGES).detach().double().flatten()
    for line in shown.stdout.splitlines():
        torch.testing.assert_close(torch.tensor(json.loads(line)).double(), expected, rtol=1e-4, atol=1e-5)
    assert len(shown.stdout.splitlines()) == len(kinds)


def test_onnx_names_what_goes_in_and_out(exported: tuple[Path, dict[str, Any]]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(exported[0] / "student.onnx")
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("images", ["batch", 1, 8, 8])]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("logits", ["batch", 10])]


def test_rebuilt_from_json_and_safetensors(exported: tuple[Path, dict[str, Any]], finished: Path) -> None:
    rebuilt, trained = load_student(exported[0]), finished_run(finished).student()
    assert isinstance(rebuilt, CifarResNet)
    assert not rebuilt.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in rebuilt.modules())
    assert torch.equal(rebuilt(IMAGES), trained(IMAGES))


def test_report_compares_every_file_and_the_teacher(exported: tuple[Path, dict[str, Any]], finished: Path) -> None:
    folder, report = exported
    summary = json.loads((finished / "summary.json").read_text())
    assert report["images"] == 360
    assert report["student"]["top1"] == pytest.approx(summary["test"]["top1"])
    for about in report["files"].values():
        assert about["max_difference"] < 1e-4
        assert about["same_class"] == 100
        assert about["bytes"] == (folder / about["file"]).stat().st_size
    assert report["student"]["parameters"] == summary["student"]["parameters"]
    assert report["teacher"]["parameters"] == summary["teacher"]["parameters"]
    assert report["teacher"]["flops"] > report["student"]["flops"]
    for at in report["latency"].values():
        assert {"teacher", "student", "torch"} <= set(at)
        assert all(latency["calls"] == 5 and latency["milliseconds"] > 0 for latency in at.values())


def test_model_card_is_filled(exported: tuple[Path, dict[str, Any]], finished: Path) -> None:
    card = (exported[0] / "MODEL_CARD.md").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    for title in ("How to load", "Data", "Method", "Accuracy", "Files and cost", "Limits", "Licence", "Made with"):
        assert f"\n## {title}\n" in card
    for fact in (
        f"{summary['test']['top1']:.2f} %", "40 training images", "kd (`nst.losses.KD`) | 16", "Seed 0", "resnet14",
        summary["teacher"]["sha256"], "mean [0.3055]", "Not stated.", 'torch.export.load("student.pt2")',
    ):  # fmt: skip
        assert fact in card
    assert "None" not in card.replace("session.run(None", "")


@pytest.mark.parametrize(
    ("student", "teacher", "told"),
    [
        (34.3, 90.0, "55.70 percentage points below the teacher's (90.00 %)"),
        (91.0, 90.0, "1.00 percentage points above"),
        (90.0, 90.001, "equal to the teacher's"),
    ],
)
def test_the_accuracy_is_compared_with_the_teachers(student: float, teacher: float, told: str) -> None:
    assert told in beside_teacher(student, teacher)


def test_what_evaluation_did_to_images_is_written_down(exported: tuple[Path, dict[str, Any]]) -> None:
    given = json.loads((exported[0] / "model.json").read_text())["input"]
    assert (given["size"], given["resize"], given["channels"], given["mean"]) == (8, None, 1, [0.3055])
    assert "images of 8 × 8 pixels; by channel" in (exported[0] / "MODEL_CARD.md").read_text()
    folder = {"size": 32, "resize": 40, "interpolation": "bicubic", "antialias": False}
    said = str(preprocessing({"channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3, **folder}))
    assert "shorter side resized to 40 pixels (bicubic, without antialiasing), then the centre crop of 32 × 32" in said


def test_the_files_may_normalise_themselves(finished: Path, tmp_path: Path) -> None:
    to = tmp_path / "pixels"
    report = export(
        composed("export", f"run={finished}", "normalize=true", "formats=[torch]", f"to={to}", "repeats=1", "images=7",
                 "licence=CC-BY-4.0")
    )  # fmt: skip
    pixels = torch.rand(2, 1, 8, 8)
    found = torch.export.load(to / "student.pt2").module()(pixels)
    expected = finished_run(finished).student()((pixels - 0.3055) / 0.3756)
    torch.testing.assert_close(found, expected)
    assert report["images"] == 7
    assert set(report["files"]) == {"torch"}
    card = (to / "MODEL_CARD.md").read_text()
    assert "CC-BY-4.0" in card
    assert "model(pixels)" in card


def test_a_student_without_a_teacher(finished: Path) -> None:
    alone = next(finished.parents[2].glob("none-resnet14/ce/*"))  # the run that trained the teacher
    report = export(composed("export", f"run={alone}", "formats=[safetensors]", "repeats=1", "images=10"))
    assert report["teacher"] is None
    assert set(report["latency"]["32"]) == {"student"}
    card = (alone / "export" / "MODEL_CARD.md").read_text()
    assert "trained without a teacher" in card
    assert "teacher |" not in card


def test_no_path_of_this_machine_in_the_files(exported: tuple[Path, dict[str, Any]]) -> None:
    folder = exported[0]
    source = str(Path(nn.__file__).parents[2]).encode()
    for file in ("student.pt2", "student.onnx", "model.json"):
        if (folder / file).is_file():
            content = (folder / file).read_bytes()
            assert source not in content
            assert str(Path(__file__).parents[2]).encode() not in content


class Branching(nn.Module):
    """Its path depends on the values, so no graph holds it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def test_errors_say_what_to_do(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        finished_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no finished run"):
        finished_run(tmp_path)
    with pytest.raises(ValueError, match="'tflite' found, any of safetensors, torch, onnx"):
        formats_to_write(["tflite"])
    with pytest.raises(ValueError, match=r"(?s)Branching.*formats=\[safetensors\]"):
        capture(Branching(), (1, 8, 8))
    with pytest.raises(ValueError, match=r"model\.json does not exist"):
        load_student(tmp_path)
    with pytest.raises(ValueError, match="images=0"):
        export(composed("export", f"run={finished}", "images=0"))


def test_a_file_of_another_network_is_refused(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nst.export.student.load", lambda folder, name, allow: resnet8(in_channels=1).eval())
    with pytest.raises(ValueError, match="disagrees with the network in memory"):
        export(composed("export", f"run={finished}", "formats=[safetensors]", f"to={tmp_path}", "repeats=1"))


def test_flops_and_parameters_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 25, 7))
    assert flops(model.eval(), (3, 5, 5)) == 2 * (25 * 4 * 27) + 2 * (100 * 7)
    assert cost(model, (3, 5, 5))["parameters"] == 4 * 27 + 4 + 8 + 707
    assert cost(model, (3, 5, 5))["bytes"] == 4 * (4 * 27 + 4 + 8 + 707 + 8) + 8  # + running statistics, their count


def test_latency_is_a_median_over_turns() -> None:
    calls: list[str] = []

    def slow(x: torch.Tensor) -> torch.Tensor:
        calls.append("slow")
        return x

    def fast(x: torch.Tensor) -> torch.Tensor:
        calls.append("fast")
        return x

    found = latencies({"slow": slow, "fast": fast}, torch.zeros(1), repeats=4)
    assert calls[6:] == ["slow", "fast"] * 4
    assert found["slow"].calls == 4


@pytest.mark.parametrize(("right", "images"), [(30, 30), (0, 12), (150, 360)])
def test_the_interval_of_an_accuracy(right: int, images: int) -> None:
    """Wilson's ends are the shares from which what was seen lies exactly z standard errors away."""
    p = right / images
    for end in wilson(p, images):
        assert end in (0.0, 1.0) or abs(p - end) == pytest.approx(1.96 * (end * (1 - end) / images) ** 0.5)
    assert wilson(p, images)[0] < wilson(p, images)[1]
