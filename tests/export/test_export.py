"""An exported student is the trained student: same logits, from files that need none of our code."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import ROOT
from torch import nn

from nst.config import ExportConfig
from nst.export import export, finished_run, load_student
from nst.export.formats import FILES, capture, formats_to_write, int8_bytes
from nst.export.inference import classifier, predict, preprocessing
from nst.export.student import cost
from nst.models import resnet8

IMAGES = torch.arange(3 * 64, dtype=torch.float32).reshape(3, 1, 8, 8) / 192 - 0.5

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
# An import of the package is an error.
ALONE = """import sys, torch
sys.modules["nst"] = None
images = torch.arange(3 * 64, dtype=torch.float32).reshape(3, 1, 8, 8) / 192 - 0.5"""


def test_the_blocks_of_the_page_give_the_students_logits(
    exported: tuple[Path, dict[str, Any]], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that name no module of the package in a process without it."""
    folder, report = exported
    expected = finished_run(finished).student()(IMAGES).detach()
    blocks = [block for block in BLOCKS if "onnx" not in block or "onnx" in report["files"]]  # onnx is an extra
    show = "print(torch.as_tensor(logits).flatten().tolist())\n"
    alone = [block + show for block in blocks if "nst" not in block]
    code = [sys.executable, "-c", "\n".join([ALONE, *alone])]
    said = subprocess.run(code, cwd=folder, capture_output=True, text=True, check=True).stdout
    found = [torch.tensor(json.loads(line)).view_as(expected) for line in said.splitlines()]
    monkeypatch.chdir(folder)
    for block in blocks:
        if "nst" in block:
            names: dict[str, Any] = {"images": IMAGES}
            exec(block, names)
            found.append(names["logits"])
    assert len(found) == len(blocks) >= 3
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(load_student(folder)(IMAGES), expected)


def test_report_compares_every_file_and_the_teacher(exported: tuple[Path, dict[str, Any]], finished: Path) -> None:
    """And no file has a path of this machine."""
    folder, report = exported
    summary = json.loads((finished / "summary.json").read_text())
    assert report["images"] == 360
    assert report["student"]["top1"] == pytest.approx(summary["test"]["top1"])
    for name, about in report["files"].items():
        assert about["same_class"] > 90 if name == "onnx_int8" else about["same_class"] == 100
        assert name == "onnx_int8" or about["max_difference"] < 1e-4
        content = (folder / about["file"]).read_bytes()
        assert about["bytes"] == len(content)
        assert not any(str(home).encode() in content for home in (Path(nn.__file__).parents[2], ROOT))
    assert report["teacher"]["parameters"] == summary["teacher"]["parameters"]
    for at in report["latency"].values():
        assert {"teacher", "student", "torch"} <= set(at)
        assert all(latency["calls"] == 5 and latency["milliseconds"] > 0 for latency in at.values())
    assert json.loads((folder / "model.json").read_text())["measured"] == json.loads(json.dumps(report))


def test_weights_in_8_bits_by_channel_and_layers_that_stay(exported: tuple[Path, dict[str, Any]]) -> None:
    onnx = pytest.importorskip("onnxruntime") and pytest.importorskip("onnx")
    content, whole = ((exported[0] / FILES[name]).read_bytes() for name in ("onnx", "onnx_int8"))
    images = [torch.randn(8, 1, 8, 8)]
    scales: list[dict[str, int]] = []  # how many each layer in 8 bits has
    for model in (whole, int8_bytes(content, images, ["conv1", "layer3"])):
        graph = onnx.load_from_string(model).graph
        assert not any(node.op_type == "BatchNormalization" for node in graph.node)
        sizes = {value.name: onnx.numpy_helper.to_array(value).size for value in graph.initializer}
        scales.append({name[:-13]: size for name, size in sizes.items() if name.endswith(".weight_scale")})
    every, rest = scales
    assert (every["conv1"], every["layer3.0.conv2"], every["fc"]) == (16, 64, 10)  # one a channel
    assert every.keys() - rest.keys() == {"conv1", "layer3.0.conv1", "layer3.0.conv2"}
    with pytest.raises(ValueError, match=r"int8_exclude.* head.*conv1"):
        int8_bytes(content, images, ["head"])


def test_what_evaluation_did_to_images_is_written_down(exported: tuple[Path, dict[str, Any]]) -> None:
    """And done again to image files: an image's EXIF tag turns it, where it is transparent it has the data's background."""
    given = json.loads((exported[0] / "model.json").read_text())["input"]
    assert (given["size"], given["resize"], given["channels"], given["mean"]) == (8, None, 1, [0.3055])
    plain: dict[str, Any] = {"channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3, "size": 8, "background": [0, 0, 0]}
    said = str(preprocessing(plain | {"size": 32, "resize": 40, "interpolation": "bicubic", "antialias": False}))
    assert "shorter side resized to 40 pixels (bicubic, without antialiasing), then the centre crop of 32 × 32" in said
    file, image, exif = io.BytesIO(), Image.new("RGBA", (8, 8)), Image.Exif()
    image.putpixel((0, 0), (255, 255, 255, 255))
    exif[0x0112] = 3  # a camera held upside down
    image.save(file, "PNG", exif=exif)
    expected = torch.full((3, 8, 8), -2.5)
    expected[:, 7, 7] = 2.5
    torch.testing.assert_close(preprocessing(plain)(file.getvalue()), expected)


def test_an_export_is_one_whole(finished: Path, tmp_path: Path) -> None:
    """A second export leaves nothing of the first, and images are classified whatever file there is, normalising itself or not."""
    image, to = tmp_path / "a.png", tmp_path / "files"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3).save(image)
    expected = dict(next(predict(classifier(finished), [image], 3, 1))[1])
    kinds = [(["safetensors"], True), (["torch"], False), (["onnx" if find_spec("onnxruntime") else "torch"], True)]
    for formats, normalize in kinds:
        cfg = ExportConfig(str(finished), formats=formats, to=str(to), repeats=1, images=7, normalize=normalize)
        assert set(export(replace(cfg, licence="CC-BY-4.0"))["files"]) == set(formats)
        files = json.loads((to / "model.json").read_text())["files"].values()
        assert {path.name for path in to.iterdir()} == {*files, "model.json", "MODEL_CARD.md"}
        assert dict(next(predict(classifier(str(to)), [image], 3, 1))[1]) == pytest.approx(expected, rel=1e-3)
        assert "CC-BY-4.0" in (to / "MODEL_CARD.md").read_text()


def test_a_student_without_a_teacher_and_the_best_epoch(finished: Path, tmp_path: Path) -> None:
    alone = next(finished.parents[2].glob("none-resnet14/ce/*"))  # the run that trained the teacher
    report = export(ExportConfig(str(alone), weights="best", formats=["safetensors"], repeats=1, to=str(tmp_path)))
    assert (report["teacher"], set(report["latency"]["32"])) == (None, {"student"})
    run, card = finished_run(alone, weights="best"), (tmp_path / "MODEL_CARD.md").read_text()
    assert torch.equal(load_student(tmp_path)(IMAGES), run.student()(IMAGES))
    for text in ("trained without a teacher", f"student, best epoch ({run.summary['best']['epoch']})"):
        assert text in card


def test_what_cannot_be_exported_is_refused(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that is none, a network that no graph holds, a file that disagrees."""

    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)  # by the values

    with pytest.raises(ValueError, match=r"tflite.*safetensors, torch, onnx, onnx_int8"):
        formats_to_write(["tflite"])
    with pytest.raises(ValueError, match=r"(?s)Branching.*formats=\[safetensors\]"):
        capture(Branching(), (1, 8, 8))
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
