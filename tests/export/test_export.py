"""An exported student is the trained student: same logits, from files that need none of our code."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nst.config import ExportConfig
from nst.export import export, finished_run, load_student
from nst.export.formats import capture, formats_to_write, int8_bytes, onnx_bytes
from nst.export.inference import classifier, predict, preprocessing
from nst.export.student import cost, latencies
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


@pytest.mark.parametrize("file", ["student.onnx", "student.int8.onnx"])
def test_onnx_names_what_goes_in_and_out(exported: tuple[Path, dict[str, Any]], file: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(exported[0] / file)
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
    for name, about in report["files"].items():
        if name == "onnx_int8":
            assert about["same_class"] > 90
        else:
            assert about["max_difference"] < 1e-4
            assert about["same_class"] == 100
        assert about["bytes"] == (folder / about["file"]).stat().st_size
    assert report["student"]["parameters"] == summary["student"]["parameters"]
    assert report["teacher"]["parameters"] == summary["teacher"]["parameters"]
    assert report["teacher"]["flops"] > report["student"]["flops"]
    for at in report["latency"].values():
        assert {"teacher", "student", "torch"} <= set(at)
        assert all(latency["calls"] == 5 and latency["milliseconds"] > 0 for latency in at.values())
    assert json.loads((folder / "model.json").read_text())["measured"] == json.loads(json.dumps(report))


def test_weights_in_8_bits_by_channel_and_layers_that_stay(exported: tuple[Path, dict[str, Any]]) -> None:
    onnx = pytest.importorskip("onnx")
    model = resnet8(in_channels=1).eval()
    content = onnx_bytes(capture(model, (1, 8, 8)), "images")
    images = [torch.randn(8, 1, 8, 8)]

    def weights(exclude: list[str]) -> dict[str, int]:
        graph = onnx.load_from_string(int8_bytes(content, images, exclude)).graph
        assert not any(node.op_type == "BatchNormalization" for node in graph.node)
        scales = {value.name: len(onnx.numpy_helper.to_array(value).flatten()) for value in graph.initializer}
        return {
            name.removesuffix(".weight_scale"): size for name, size in scales.items() if name.endswith(".weight_scale")
        }

    every = weights([])
    assert (every["conv1"], every["layer3.0.conv2"], every["fc"]) == (16, 64, 10)  # a scale a channel
    assert every.keys() - weights(["conv1", "layer3"]).keys() == {"conv1", "layer3.0.conv1", "layer3.0.conv2"}
    with pytest.raises(ValueError, match=r"int8_exclude: the network has no layer head with weights; it has conv1"):
        int8_bytes(content, images, ["head"])


def test_what_evaluation_did_to_images_is_written_down(exported: tuple[Path, dict[str, Any]]) -> None:
    given = json.loads((exported[0] / "model.json").read_text())["input"]
    assert (given["size"], given["resize"], given["channels"], given["mean"]) == (8, None, 1, [0.3055])
    folder = {"size": 32, "resize": 40, "interpolation": "bicubic", "antialias": False}
    said = str(preprocessing({"channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3, **folder}))
    assert "shorter side resized to 40 pixels (bicubic, without antialiasing), then the centre crop of 32 × 32" in said


def test_image_files_are_read_as_in_training() -> None:
    """Turned as their EXIF tag says, transparent ones on the data's background."""
    prepare = preprocessing({"channels": 3, "size": 8, "mean": [0.5] * 3, "std": [0.2] * 3, "background": [0, 0, 0]})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))

    def encoded(image: Image.Image, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, "PNG", **options)
        return file.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright: to be turned by a quarter
    assert torch.equal(prepare(encoded(image.rotate(90), exif=exif)), prepare(encoded(image)))
    transparent = image.convert("RGBA")
    transparent.putalpha(0)
    assert torch.equal(prepare(encoded(transparent)), torch.full((3, 8, 8), -2.5))


def test_the_files_may_normalise_themselves(finished: Path, tmp_path: Path) -> None:
    to = tmp_path / "pixels"
    report = export(
        ExportConfig(
            run=str(finished), normalize=True, formats=["torch"], to=str(to), repeats=1, images=7, licence="CC-BY-4.0"
        )
    )
    pixels = torch.rand(2, 1, 8, 8)
    found = torch.export.load(to / "student.pt2").module()(pixels)
    expected = finished_run(finished).student()((pixels - 0.3055) / 0.3756)
    torch.testing.assert_close(found, expected)
    assert report["images"] == 7
    assert set(report["files"]) == {"torch"}
    card = (to / "MODEL_CARD.md").read_text()
    assert "CC-BY-4.0" in card
    assert "model(pixels)" in card


def test_an_export_is_one_whole(finished: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A second export leaves nothing of the first, and images are classified whatever file there is."""
    image, to = tmp_path / "a.png", tmp_path / "files"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3).save(image)
    expected = next(predict(classifier(finished), [image], 3, 1))
    for formats in [["safetensors", "torch"], ["torch"], ["onnx"]]:
        if formats == ["onnx"]:
            pytest.importorskip("onnxruntime")
        for normalize in (False, True):
            export(
                ExportConfig(run=str(finished), formats=formats, to=str(to), repeats=1, images=7, normalize=normalize)
            )
            about = json.loads((to / "model.json").read_text())
            assert {path.name for path in to.iterdir()} == {
                *about["files"].values(), "model.json", "MODEL_CARD.md",
            }  # fmt: skip
            found = next(predict(classifier(str(to)), [image], 3, 1))
            assert [name for name, _ in found[1]] == [name for name, _ in expected[1]]
            np.testing.assert_allclose([p for _, p in found[1]], [p for _, p in expected[1]], rtol=1e-3)


def test_a_student_without_a_teacher(finished: Path) -> None:
    alone = next(finished.parents[2].glob("none-resnet14/ce/*"))  # the run that trained the teacher
    report = export(ExportConfig(run=str(alone), formats=["safetensors"], repeats=1, images=10))
    assert report["teacher"] is None
    assert set(report["latency"]["32"]) == {"student"}
    card = (alone / "export" / "MODEL_CARD.md").read_text()
    assert "trained without a teacher" in card
    assert "teacher |" not in card


def test_no_path_of_this_machine_in_the_files(exported: tuple[Path, dict[str, Any]]) -> None:
    for file in ("student.pt2", "student.onnx", "student.int8.onnx", "model.json"):
        if (exported[0] / file).is_file():
            content = (exported[0] / file).read_bytes()
            for home in (Path(nn.__file__).parents[2], Path(__file__).parents[2]):
                assert str(home).encode() not in content


class Branching(nn.Module):
    """Its path depends on the values, so no graph holds it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def test_errors_say_what_to_do(finished: Path) -> None:
    with pytest.raises(ValueError, match="'tflite' found, any of safetensors, torch, onnx, onnx_int8"):
        formats_to_write(["tflite"])
    with pytest.raises(ValueError, match=r"(?s)Branching.*formats=\[safetensors\]"):
        capture(Branching(), (1, 8, 8))
    with pytest.raises(ValueError, match="images=0"):
        export(ExportConfig(run=str(finished), images=0))


def test_a_file_of_another_network_is_refused(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nst.export.formats.load", lambda folder, name: resnet8(in_channels=1).eval())
    with pytest.raises(ValueError, match="disagrees with the network in memory"):
        export(ExportConfig(run=str(finished), formats=["safetensors"], to=str(tmp_path), repeats=1))


def test_flops_and_parameters_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 25, 7)).eval()
    assert cost(model, (3, 5, 5)) == {
        "parameters": 4 * 27 + 4 + 8 + 707,
        "bytes": 4 * (4 * 27 + 4 + 8 + 707 + 8) + 8,  # + running statistics, their count
        "flops": 2 * (25 * 4 * 27) + 2 * (100 * 7),
    }


def test_the_weights_of_the_best_epoch(finished: Path, tmp_path: Path) -> None:
    run = finished_run(finished, weights="best")
    report = export(
        ExportConfig(run=str(finished), weights="best", formats=["safetensors"], repeats=1, to=str(tmp_path))
    )
    assert torch.equal(load_student(tmp_path)(IMAGES), run.student()(IMAGES))
    assert report["test"]["top1"] == pytest.approx(run.summary["best"]["top1"])  # all test images
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert f"student, best epoch ({run.summary['best']['epoch']})" in card
    assert "chosen by its accuracy on the test images" in card


def test_latency_is_a_median_over_turns() -> None:
    calls: list[str] = []

    def network(name: str) -> Any:
        return lambda x: calls.append(name) or x

    found = latencies({"slow": network("slow"), "fast": network("fast")}, torch.zeros(1), repeats=4)
    assert calls[6:] == ["slow", "fast"] * 4
    assert found["slow"]["calls"] == 4
