"""docs/own_network.md, followed step by step on generated images: its files, its commands, its printed output."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from blocks import PAGES, Command, blocks, commands
from PIL import Image

from nst.cli.main import command

PAGE = next(page for page in PAGES if page.name == "own_network.md")
SHRUNKEN = (
    "teacher.model.pretrained=false", "data.size=32", "data.resize=36", "trainer.workers=0", "trainer.batch_size=20",
    "teacher.min_accuracy=0", "teacher.train.batch_size=20",
    "trainer.epochs=1", "teacher.train.epochs=1",
)  # fmt: skip


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the repository with the page's files and images of three classes."""
    for block in blocks(PAGE, "python", "yaml"):
        assert block.file is not None, f"{block}: the line before it does not name its file"
        path = tmp_path / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    noise = np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 6)):
        for channel, name in enumerate(("cat", "dog", "owl")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 120, (40, 48, 3))
                pixels[..., channel] += 110
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg")
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr("sys.path", [*sys.path])  # commands add the folder
    return tmp_path


def page_command(fragment: str) -> Command:
    return next(c for c in commands() if c.page == PAGE.name and fragment in c.text)


def start(
    typed: Command, monkeypatch: pytest.MonkeyPatch, *more: str, leave_out: str | tuple[str, ...] = "nothing"
) -> None:
    """Give a command of the page in its folder, in this process."""
    assert typed.words[0] == "nst"
    monkeypatch.setattr("sys.argv", ["nst"])
    command(typed.words[1], [*(word for word in typed.words[2:] if not word.startswith(leave_out)), *more])


def test_the_page_from_layers_to_predictions(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(page_command("nst layers"), monkeypatch, "teacher.model.pretrained=false")
    printed = re.findall(r"^    (teacher and student.*?)^\S", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    assert capsys.readouterr().out.endswith(re.sub(r"(?m)^    ", "", printed).rstrip() + "\n")
    start(page_command("trainer.epochs=60"), monkeypatch, *SHRUNKEN)
    finished = next(own.glob("outputs/folder/resnet18-smallnet/kd+nst_poly/*/summary.json"))
    summary = json.loads(finished.read_text())
    assert summary["student"]["name"] == "smallnet"
    assert summary["test"]["images"] == 18
    lines = [json.loads(line) for line in (finished.parent / "metrics.jsonl").read_text().splitlines()]
    terms = next(line["terms"] for line in lines if line["kind"] == "train")
    assert set(terms) == {"ce", "kd", "nst_poly"}

    run = f"run={finished.parent.relative_to(own)}"
    start(page_command("nst export"), monkeypatch, run, "formats=[safetensors,torch]", "repeats=1", leave_out="run=")
    exported = finished.parent / "export"
    assert json.loads((exported / "model.json").read_text())["target"] == "mynet.SmallNet"
    assert "cat, dog, owl" in (card := (exported / "MODEL_CARD.md").read_text())
    assert "\nMIT\n" in card
    assert torch.export.load(exported / "student.pt2").module()(torch.zeros(5, 3, 32, 32)).shape == (5, 3)
    assert "shorter side resized to 36 pixels (bilinear, with antialiasing), then the centre crop of 32 × 32" in card
    assert "| network | top-1 | cross-entropy | images |" in card  # of three classes the first five are all
    for model in (exported, exported.parent):  # on the test images: as accurate as the run's evaluation
        right = 0
        for name in ("cat", "dog", "owl"):
            capsys.readouterr()
            words = (f"model={model}", f"images={own}/photos/val/{name}", "format=json")
            start(page_command("nst predict"), monkeypatch, *words, leave_out=("model=", "images="))
            lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert [line["image"] for line in lines] == [f"{i}.jpg" for i in range(6)]
            assert all(abs(sum(c["probability"] for c in line["classes"]) - 1) < 1e-5 for line in lines)
            right += sum(line["classes"][0]["class"] == name for line in lines)
        assert 100 * right / 18 == pytest.approx(summary["test"]["top1"])
