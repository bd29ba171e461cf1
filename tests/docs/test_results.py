"""What the pages say was measured is what the files in results/ say."""

import json
from pathlib import Path

import pytest
from scripts import results
from tests.report.written import write_run, write_table

from nst.report.table import read_table
from nst.report.write import write_result


@pytest.mark.parametrize("page", results.PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_the_files_say(page: Path) -> None:
    assert results.SECTION.search(page.read_text())
    assert results.written(page) == page.read_text(), "python scripts/results.py pages"


@pytest.mark.parametrize("file", sorted((results.ROOT / "results").glob("*.json*")), ids=lambda file: file.name)
def test_no_file_names_a_folder_of_the_machine(file: Path) -> None:
    assert not results.FOLDERS.search(file.read_text())


def test_a_table_is_kept(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "outputs")
    plan = json.loads((folder / "plan.json").read_text())
    plan["command"] += " data.root=/home/somebody/data/cifar10 outputs=/tmp/x"
    (folder / "plan.json").write_text(json.dumps(plan))
    write_result(read_table(folder, tmp_path / "outputs"), folder, tmp_path / "outputs")
    results.keep_table(folder, tmp_path / "kept")
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["command"].endswith("data.root=cifar10 outputs=x")
    section = results.table_section(kept)
    assert "| NST <poly> | 4.45 ± 0.07 (2) |" in section
    assert "commit abc on cpu, threads: 1" in section
    runs = [json.loads(line) for line in (tmp_path / "kept.runs.jsonl").read_text().splitlines()]
    assert [(run["seed"], run["top1_by_epoch"][-1]) for run in runs if run["loss"] == {"ce": 1.0}] == [
        (0, 94.0),
        (1, 95.0),
        (2, 93.0),
    ]
    assert len(runs) == 8


def test_a_search_is_kept(tmp_path: Path) -> None:
    """Only runs that were evaluated on a validation part; equal settings are one row."""
    for seed, accuracy in ((0, 90.0), (1, 92.0), (2, 50.0)):
        folder = tmp_path / "outputs" / write_run(tmp_path / "outputs", "kd", seed, [10.0, accuracy])
        summary = json.loads((folder / "summary.json").read_text())
        summary["evaluated_on"] = "test" if seed == 2 else "val"
        (folder / "summary.json").write_text(json.dumps(summary))
    results.main(["search", str(tmp_path / "outputs"), str(tmp_path / "kept.jsonl")])
    section = results.search_section((tmp_path / "kept.jsonl").read_text().splitlines())
    assert "| small | kd 50 | 0.1 | 0.0001 | all | 2 | 91.00 (2) |" in section
