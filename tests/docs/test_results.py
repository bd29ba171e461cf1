"""What the pages say was measured is what the files in results/ say."""

import json
from pathlib import Path

import pytest
from scripts import results
from tests.report.written import write_table


@pytest.mark.parametrize("page", results.PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_the_files_say(page: Path) -> None:
    assert results.SECTION.search(page.read_text())
    assert results.written(page) == page.read_text(), "python scripts/results.py pages"


@pytest.mark.parametrize("file", sorted((results.ROOT / "results").glob("*.json*")), ids=lambda file: file.name)
def test_no_file_names_a_folder_of_the_machine(file: Path) -> None:
    assert not results.FOLDERS.search(file.read_text())


def kept(tmp_path: Path, **changes: object) -> list[results.Record]:
    """Runs of three methods as `add` keeps them."""
    write_table(tmp_path / "outputs")
    for file in (tmp_path / "outputs").rglob("summary.json"):
        summary = json.loads(file.read_text())
        file.write_text(json.dumps(summary | changes))
    results.main(["add", str(tmp_path / "outputs"), str(tmp_path / "kept.jsonl")])
    return [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]


def test_a_run_is_kept_once(tmp_path: Path) -> None:
    """Also where another machine did it again; and without the folders of the machine."""
    runs = kept(tmp_path, commit="/home/somebody/abc")
    assert len(runs) == 8  # the ninth is not finished
    assert {run["commit"] for run in runs} == {"abc"}
    (tmp_path / "outputs").rename(tmp_path / "elsewhere")
    assert kept(tmp_path, commit="def") == runs


def test_rows_are_means_over_seeds_beside_the_baseline(tmp_path: Path) -> None:
    lines = results.section(kept(tmp_path)).splitlines()
    assert lines[2:4] == [
        "| baseline | 94.00 ± 1.00 (3) | – | 70.0 |",
        "| kd 50 | 95.00 ± 1.00 (3) | +1.00 ± 0.00 | 70.0 |",
    ]
    assert lines[4].startswith("| nst_poly 50 | 95.55 ± 0.07 (2) | +1.05")
    assert "training images: all; epochs: 2; " in lines[-1]
    assert lines[-1].endswith("Measured with commit abc on cpu, threads: 1.")


def test_settings_that_differ_are_columns(tmp_path: Path) -> None:
    """A method is compared with the baseline of its own settings."""
    runs = kept(tmp_path)
    other = json.loads(json.dumps([run for run in runs if run["seed"] == 0 and "nst_poly" not in run["loss"]]))
    for run in other:
        run["optim"]["lr"] = 0.2
        run["top1_by_epoch"] = {"2": 70.0 + len(run["loss"])}
    lines = results.section(runs + other).splitlines()
    assert lines[0] == "| method, λ | learning rate | last epoch | Δ vs. baseline | training accuracy |"
    assert "| kd 50 | 0.2 (cosine) | 72.00 (1) | +1.00 | 70.0 |" in lines


def test_a_method_is_compared_with_the_baseline_on_the_same_views_too(tmp_path: Path) -> None:
    """A run whose term has next to no weight is that."""
    runs = kept(tmp_path)
    control = json.loads(json.dumps([run for run in runs if "kd" in run["loss"]]))
    for run in control:
        run["loss"]["kd"]["weight"] = 1e-9
        run["top1_by_epoch"] = {"2": 90.0}
    lines = results.section(runs + control).splitlines()
    assert lines[3] == "| baseline on the cached views | 90.00 ± 0.00 (3) | -4.00 ± 2.48 | – | 70.0 |"
    assert "| kd 50 | 95.00 ± 1.00 (3) | +1.00 ± 0.00 | +5.00 ± 2.48 | 70.0 |" in lines


def test_parts_of_a_term_that_differ_are_named(tmp_path: Path) -> None:
    runs = kept(tmp_path)
    runs += json.loads(json.dumps([run for run in runs if "kd" in run["loss"]]))
    for i, run in enumerate(run for run in runs if "kd" in run["loss"]):
        run["loss"]["kd"]["temperature"] = 4.0 if i < 3 else 8.0
    section = results.section(runs)
    assert "| kd 50 temperature=4.0 | 95.00 ± 1.00 (3) |" in section
    assert "| kd 50 temperature=8.0 | 95.00 ± 1.00 (3) |" in section


def test_taps_that_differ_are_named_by_layer(tmp_path: Path) -> None:
    runs = [run for run in kept(tmp_path) if "nst_poly" in run["loss"]]
    for run, student in zip(runs, ("last", "layer2"), strict=True):
        run["loss"]["nst_poly"]["taps"] = [{"teacher": "last", "student": student}]
    section = results.section(runs)
    assert "| nst_poly 50 taps=last |" in section
    assert "| nst_poly 50 taps=last→layer2 |" in section


def test_diverged_runs_are_counted(tmp_path: Path) -> None:
    """They have no accuracy."""
    folder = next(
        f.parent for f in (write_table(tmp_path / "outputs").parents[2]).rglob("summary.json") if "kd" in str(f)
    )
    (folder / "summary.json").unlink()
    (folder / "diverged.json").write_text(json.dumps({"reason": "the loss is nan"}))
    results.main(["add", str(tmp_path / "outputs"), str(tmp_path / "kept.jsonl")])
    runs = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert "(2); diverged (1) | +1.00" in results.section(runs)
