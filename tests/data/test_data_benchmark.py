import argparse
import json
from pathlib import Path

from tests.data.samples import write_tree

from benchmarks import data


def test_the_benchmark_measures_both_kinds_of_images(tmp_path: Path) -> None:
    """At its smallest."""
    parser, report = argparse.ArgumentParser(), tmp_path / "speed.json"
    data.add_arguments(parser)
    write_tree(tmp_path / "photographs")
    words = [f"--photographs={tmp_path / 'photographs'}", "--size=16", "--images=256", f"--json={report}"]
    data.run(parser.parse_args([*words, "--workers=0", "--repeats=1", "--seconds=0.01"]))
    found = json.loads(report.read_text())
    assert [row["name"] for row in found["memory"]] == ["this version"] * 2
    assert [row["name"] for row in found["photographs"]] == ["torchvision", "torchvision, ToImage first", "ours"]
    assert found["photographs"][0]["times_torchvision"] == 1
