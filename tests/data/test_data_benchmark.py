import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.photographs import decoder
from tests.data.samples import write_tree

from benchmarks import data


def measured(folder: Path, *words: str) -> dict[str, Any]:
    """What the benchmark writes, at its smallest."""
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    words = (*words, "--workers=0", "--repeats=1", "--device=cpu", "--seconds=0.05", f"--json={folder / 'speed.json'}")
    data.run(parser.parse_args(words))
    return json.loads((folder / "speed.json").read_text())


def test_the_benchmark_measures_both_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = measured(tmp_path, "--images=256", "--jpegs=2")
    assert [row["name"] for row in report["memory"]] == ["PIL DataLoader, 0 workers", "ours", "ours, channels_last"]
    assert report["memory"][0]["times_pil"] == 1
    found = report["photographs"]
    assert [row["name"] for row in found["loaders"]][:3] == [
        "torchvision",
        "torchvision, ToImage first",
        f"ours, {decoder()}",
    ]
    assert found["loaders"][0]["times_torchvision"] == 1
    assert len(found["one_core"]) == 4
    shown = capsys.readouterr().out
    assert "PIL DataLoader" in shown
    assert "JPEG 500×375" in shown


def test_a_folder_of_photographs_can_be_given(tmp_path: Path) -> None:
    write_tree(tmp_path / "photographs")
    report = measured(tmp_path, "--images=0", f"--photographs={tmp_path / 'photographs'}", "--size=16", "--limit=4")
    assert set(report) == {"machine", "photographs"}
    assert all(row["images_per_second"] > 0 for row in report["photographs"]["loaders"])
