"""The benchmark of a step runs every loss in every way it has, and reports ratios."""

import json
from argparse import ArgumentParser
from pathlib import Path

from benchmarks import step


def test_the_command(tmp_path: Path) -> None:
    parser, target = ArgumentParser(), tmp_path / "step.json"
    step.add_arguments(parser)
    words = "--losses kd crd/crd --student resnet8 --teacher resnet8 --batch-size 4 --repeats 1 --device cpu"
    step.run(parser.parse_args([*words.split(), "--json", str(target)]))
    report = json.loads(target.read_text())
    kinds = [(row["loss"], row["knowledge"]) for row in report["rows"]]
    both = [(loss, kind) for loss in ("kd", "crd/crd") for kind in ("live", "stored")]
    assert kinds == [("ce", "plain"), *both]
    assert all("loss_alone" in row for row in report["rows"][1:])
    assert all(row["ratio_to_plain"] > 0 and row["images_per_second"] > 0 for row in report["rows"])
