import argparse
import json
from pathlib import Path

from tests.data.samples import write_tree

from benchmarks import data


def test_the_benchmark_compares_with_torchvision_and_another_version(tmp_path: Path) -> None:
    """At its smallest."""
    parser, report = argparse.ArgumentParser(), tmp_path / "speed.json"
    data.add_arguments(parser)
    write_tree(tmp_path / "photographs")
    words = [f"--photographs={tmp_path / 'photographs'}", "--size=16", f"--old={data.HERE}", "--images=256"]
    words += ["--workers=0", "--repeats=1", "--seconds=0.01", f"--json={report}"]
    data.run(parser.parse_args(words))
    found = json.loads(report.read_text())
    assert [row["name"] for row in found["memory"]] == ["this version", "other version"] * 2
    assert all(row["times_other_version"] > 0 for row in found["memory"])
    assert [row["name"] for row in found["photographs"]] == ["torchvision", "torchvision, ToImage first", "ours"]
    assert found["photographs"][0]["times_torchvision"] == 1
