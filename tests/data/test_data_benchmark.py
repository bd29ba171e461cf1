import argparse
import json
from pathlib import Path

import pytest

from benchmarks import data


def test_the_benchmark_measures_both_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    file = tmp_path / "speed.json"
    small = [
        "--images",
        "256",
        "--jpegs",
        "2",
        "--workers",
        "0",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--seconds",
        "0.05",
    ]
    data.run(parser.parse_args([*small, "--json", str(file)]))
    report = json.loads(file.read_text())
    assert [row["name"] for row in report["memory"]] == ["PIL DataLoader, 0 workers", "ours", "ours, channels_last"]
    assert report["memory"][0]["times_pil"] == 1
    assert len(report["jpeg"]["one_core"]) == 4
    assert report["jpeg"]["loader"]["images_per_second"] > 0
    shown = capsys.readouterr().out
    assert "PIL DataLoader" in shown
    assert "JPEG 500×375" in shown
