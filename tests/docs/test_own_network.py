"""docs/own_network.md, followed step by step on generated images: its files, its commands, its printed output."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from blocks import PAGES, ROOT, Command, blocks, commands
from PIL import Image

PAGE = next(page for page in PAGES if page.name == "own_network.md")
SHRUNKEN = (
    "teacher.model.pretrained=false", "data.size=32", "data.resize=36", "trainer.workers=0", "trainer.batch_size=20",
    "trainer.heatmaps=false", "teacher.min_accuracy=0", "teacher.recipe.trainer.batch_size=20",
    "trainer.epochs=2", "teacher.recipe.trainer.epochs=1",
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
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # PYTHONPATH=.
    return tmp_path


def page_command(fragment: str) -> Command:
    return next(c for c in commands() if c.page == PAGE.name and fragment in c.text)


def start(command: Command, monkeypatch: pytest.MonkeyPatch, *more: str, leave_out: str = "nothing") -> None:
    """Run a command of the page in this process, `~/nst` being this repository."""
    script = command.words[1].replace("~/nst", str(ROOT))
    arguments = [word for word in command.words[2:] if not word.startswith(leave_out)]
    monkeypatch.setattr("sys.argv", [script, *arguments, *more])
    runpy.run_path(script, run_name="__main__")


def test_ten_lines_of_yaml_and_a_short_file() -> None:
    python, yaml = (next(b for b in blocks(PAGE, language)) for language in ("python", "yaml"))
    assert len(yaml.text.splitlines()) == 10
    assert len(python.text.splitlines()) <= 30


def test_layers_as_printed_on_the_page(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(page_command("layers.py"), monkeypatch, "teacher.model.pretrained=false")
    shown = capsys.readouterr().out
    printed = re.findall(r"^    (teacher and student.*?)^\S", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    assert shown.endswith(re.sub(r"(?m)^    ", "", printed).rstrip() + "\n")


def test_train_and_export(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(page_command("trainer.epochs=60"), monkeypatch, *SHRUNKEN)
    finished = next(own.glob("outputs/folder/resnet18-smallnet/kd+nst_poly/*/summary.json"))
    summary = json.loads(finished.read_text())
    assert summary["student"]["name"] == "smallnet"
    assert summary["test"]["images"] == 18
    lines = [json.loads(line) for line in (finished.parent / "metrics.jsonl").read_text().splitlines()]
    terms = next(line["terms"] for line in lines if line["kind"] == "train")
    assert set(terms) == {"ce", "kd", "nst_poly"}

    run = f"run={finished.parent.relative_to(own)}"
    start(page_command("export.py"), monkeypatch, run, "formats=[safetensors,torch]", "repeats=1", leave_out="run=")
    exported = finished.parent / "export"
    assert json.loads((exported / "model.json").read_text())["target"] == "mynet.SmallNet"
    assert "cat, dog, owl" in (card := (exported / "MODEL_CARD.md").read_text())
    assert "\nMIT\n" in card
    assert torch.export.load(exported / "student.pt2").module()(torch.zeros(5, 3, 32, 32)).shape == (5, 3)
