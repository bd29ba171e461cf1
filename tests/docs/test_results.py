"""What the pages say was measured is what the files in results/ say."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scripts import results
from tests.report.written import write_table

import result_tables
import run_lines
from nst.config import CONFIGS
from nst.reproduce.table import read_table


@pytest.mark.parametrize("page", results.PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_the_files_say(page: Path) -> None:
    assert results.SECTION.search(page.read_text())
    assert results.written(page) == page.read_text(), "python scripts/results.py pages"


@pytest.mark.parametrize("page", results.PAGES, ids=lambda page: page.name)
def test_the_figures_draw_what_the_files_say(page: Path) -> None:
    figures = results.drawn(page)
    if not figures:
        pytest.skip("no figure of this page has been measured")
    for file, figure in figures.items():
        assert file.read_text() == figure, "python scripts/results.py pages"


@pytest.mark.parametrize("file", sorted((results.ROOT / "results").glob("*.json*")), ids=lambda file: file.name)
def test_no_file_names_a_folder_of_the_machine(file: Path) -> None:
    assert not run_lines.FOLDERS.search(file.read_text())


@pytest.mark.parametrize("file", sorted((results.ROOT / "results").glob("*.json*")), ids=lambda file: file.name)
def test_each_file_has_the_command_that_made_it(file: Path) -> None:
    assert f"`{file.name}`" in (results.ROOT / "results" / "README.md").read_text()


def kept(tmp_path: Path, **changes: object) -> list[run_lines.Record]:
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


def test_runs_that_a_line_does_not_tell_apart_are_an_error(tmp_path: Path) -> None:
    """A setting that is not kept; the second run would be left out, or replace the first in its row."""
    runs = kept(tmp_path)
    folder = next((tmp_path / "outputs").rglob("kd/seed0-00000000"))
    other = folder.with_name("seed0-11111111")
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    config["trainer"]["batch_size"] = 256
    (other / "config.json").write_text(json.dumps(config))
    message = r"seed0-11111111: kept.jsonl has a run that differs in trainer.batch_size: .the default., 256 alone"
    with pytest.raises(ValueError, match=message):
        results.main(["add", str(tmp_path / "outputs"), str(tmp_path / "kept.jsonl")])
    config["trainer"]["batch_size"] = 128
    config["teacher"]["weights"] = "other.pt"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"seed0-11111111: .* differs in the teacher's settings: .*other\.pt"):
        results.main(["add", str(tmp_path / "outputs"), str(tmp_path / "kept.jsonl")])
    with pytest.raises(ValueError, match=r"a row of KD 50 has two runs of a seed: \[0, 0, 1, 2\]"):
        result_tables.section([*runs, next(run for run in runs if "kd" in run["loss"])])


def test_compiled_runs_stand_beside_eager_ones(tmp_path: Path) -> None:
    """Only rounding differs."""
    runs = kept(tmp_path)
    runs[0]["others"] = runs[0]["others"] | {"trainer.compile": True}
    assert not run_lines.hidden_differences(runs)
    runs[0]["others"] = runs[0]["others"] | {"trainer.batch_size": 7}
    assert run_lines.hidden_differences(runs).startswith("trainer.batch_size: ")


@pytest.mark.parametrize(
    ("key", "part", "value"),
    [
        ("data", "name", "cifar10"),
        ("data", "validation", 0.1),
        ("optim", "momentum", 0.5),
        ("knowledge", "dtype", "float32"),
        ("others", "trainer.ema", 0.99),
        ("teacher_settings", "teacher.weights", "other.pt"),
    ],
)
def test_runs_of_other_data_or_recipes_are_no_rows_of_one_table(
    tmp_path: Path, key: str, part: str, value: object
) -> None:
    runs = kept(tmp_path)
    for run in runs:
        run["optim"]["momentum"] = 0.9
    changed = next(run for run in runs if "kd" in run["loss"])
    changed[key] = changed[key] | {part: value}
    names = {"others": part, "teacher_settings": "the teacher's settings"}
    with pytest.raises(ValueError, match=f"differ in {names.get(key, f'{key}.{part}')}: .* do not belong"):
        result_tables.section(runs)


def test_rows_are_means_over_seeds_beside_the_baseline(tmp_path: Path) -> None:
    lines = result_tables.section(kept(tmp_path)).splitlines()
    assert lines[2:4] == [
        "| baseline | 94.00 ± 1.00 (3) | 94.00 | – | 70.0 |",
        "| KD 50 | 95.00 ± 1.00 (3) | 95.00 | +1.00 ± 0.00 | 70.0 |",
    ]
    assert lines[4].startswith("| NST (poly) 50 | 95.55 ± 0.07 (2) | 95.55 | +1.05")
    assert lines[6].startswith("| what NST adds | ")
    assert lines[8].startswith(r"| NST (poly) 50 − baseline | +1.05 ± 5.72 \[+1.05\] (2) |")
    assert "training images: all; epochs: 2; " in lines[-1]
    assert lines[-1].endswith("Measured with commit abc on cpu, threads: 1.")


def test_published_figures_stand_beside_the_best_and_the_last_epoch(tmp_path: Path) -> None:
    """A method that has not been run has a row, too."""
    row = {"label": "KD", "published": 94.5, "run": ["loss=kd"]}
    text = {
        "title": "A table", "source": "somewhere", "metric": "accuracy", "images": [1437, 360], "seeds": 1, "epoch": "best",
        "groups": [{"name": "small", "title": "small", "rows": [
            {"name": "student", "label": "Baseline", "published": 93.0, "run": ["loss=ce"]}, {"name": "kd", **row}, {"name": "at", **row},
        ]}],
    }  # fmt: skip
    (tmp_path / "table.yaml").write_text(json.dumps(text))
    runs = [run for run in kept(tmp_path) if "nst_poly" not in run["loss"]]
    lines = result_tables.published_section(runs, read_table(str(tmp_path / "table.yaml"), CONFIGS)).splitlines()
    assert lines[0] == "| method | published, best epoch | best epoch | last epoch | Δ of the last vs. baseline |"
    assert lines[2:5] == [
        "| Baseline | 93.00 | 94.00 ± 1.00 (3) | 94.00 ± 1.00 (3) | – |",
        "| KD | 94.50 | 96.00 ± 1.00 (3) | 95.00 ± 1.00 (3) | +1.00 ± 0.00 |",
        "| KD | 94.50 | – | not run to the end | – |",
    ]


def test_published_figures_stand_beside_runs_of_one_setting(tmp_path: Path) -> None:
    row = {"published": 93.0, "run": ["loss=ce"]}
    rows = [{"name": "student", "label": "Baseline", **row}, {"name": "kd", "label": "KD", **row}]
    text = {
        "title": "A table", "source": "somewhere", "metric": "accuracy", "images": [1437, 360], "seeds": 1,
        "groups": [{"name": "small", "title": "small", "rows": rows}],
    }  # fmt: skip
    (tmp_path / "table.yaml").write_text(json.dumps(text))
    table = read_table(str(tmp_path / "table.yaml"), CONFIGS)
    runs = kept(tmp_path)
    result_tables.published_section(runs, table)
    with pytest.raises(ValueError, match="its published figures are errors"):
        result_tables.published_section(runs, replace(table, metric="error"))
    first = next(run for run in runs if "kd" in run["loss"])
    first["loss"]["kd"]["weight"] = 9.0
    with pytest.raises(ValueError, match="a row of kd has runs of several settings: KD 50, KD 9"):
        result_tables.published_section(runs, table)
    first["optim"]["lr"] = 0.2
    with pytest.raises(ValueError, match="these differ in learning rate"):
        result_tables.published_section(runs, table)


def test_settings_that_differ_are_columns(tmp_path: Path) -> None:
    """A method is compared with the baseline of its own settings."""
    runs = kept(tmp_path)
    other = json.loads(json.dumps([run for run in runs if run["seed"] == 0 and "nst_poly" not in run["loss"]]))
    for run in other:
        run["optim"]["lr"] = 0.2
        run["top1_by_epoch"] = {"2": 70.0 + len(run["loss"])}
    lines = result_tables.section(runs + other).splitlines()
    assert lines[0] == "| method, λ | learning rate | last epoch | median | Δ vs. baseline | training accuracy |"
    assert "| KD 50 | 0.2 (cosine) | 72.00 (1) | 72.00 | +1.00 | 70.0 |" in lines


def test_a_method_is_compared_with_the_baseline_on_the_same_views_too(tmp_path: Path) -> None:
    """A run whose term has next to no weight is that."""
    runs = kept(tmp_path)
    control = json.loads(json.dumps([run for run in runs if "kd" in run["loss"]]))
    for run in control:
        run["loss"]["kd"]["weight"] = 1e-9
        run["top1_by_epoch"] = {"2": 90.0}
    lines = result_tables.section(runs + control).splitlines()
    assert lines[3] == "| baseline on the cached views | 90.00 ± 0.00 (3) | 90.00 | -4.00 ± 2.48 | – | 70.0 |"
    assert "| KD 50 | 95.00 ± 1.00 (3) | 95.00 | +1.00 ± 0.00 | +5.00 ± 2.48 | 70.0 |" in lines


def test_parts_of_a_term_that_differ_are_named(tmp_path: Path) -> None:
    runs = kept(tmp_path)
    runs += json.loads(json.dumps([run for run in runs if "kd" in run["loss"]]))
    terms = [run["loss"]["kd"] for run in runs if "kd" in run["loss"]]
    for i, term in enumerate(terms):
        term["temperature"] = 4.0 if i < 3 else 8.0
    section = result_tables.section(runs)
    assert "| KD 50 temperature=4.0 | 95.00 ± 1.00 (3) |" in section
    assert "| KD 50 temperature=8.0 | 95.00 ± 1.00 (3) |" in section
    terms[3]["temperature"] = 4.0
    next(run for run in runs if run["loss"].get("kd") is terms[3])["seed"] = 3
    section = result_tables.section(runs)
    assert re.search(r"^\| KD 50 temperature=8.0 \| .* \(2\) \|", section, re.M)
    assert re.search(r"^\| KD 50 \|", section, re.M)  # the option of most runs is not shown


def test_a_page_chooses_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline is always there; the baseline on the cached views is not."""
    runs = kept(tmp_path)
    (tmp_path / "results").mkdir()
    control = json.loads(json.dumps([run for run in runs if "kd" in run["loss"]]))
    for run in control:
        run["loss"]["kd"]["weight"] = 1e-9
    (tmp_path / "results" / "kept.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs + control))
    page = tmp_path / "README.md"
    page.write_text("<!-- results: kept.jsonl test of nst_poly kd+nst_poly -->\n<!-- end of results -->\n")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    found = re.findall(r"^\| (?!method|---)(.*?) \|", results.written(page), re.M)
    assert found == ["baseline", "NST (poly) 50"]


def test_what_nst_adds_compares_runs_of_one_source(tmp_path: Path) -> None:
    """A sum on cached summaries with the same sum without NST on cached summaries."""
    live = kept(tmp_path)
    sums = json.loads(json.dumps([run for run in live if "kd" in run["loss"]]))
    for run in sums:
        run["loss"]["nst_poly"] = {"weight": 50.0}
        run["top1_by_epoch"] = {"2": 96.0}
    cached = json.loads(json.dumps([run for run in live + sums if run["knowledge"]]))
    for run in cached:
        run["knowledge"] |= {"mode": "stored", "views": 4}
    section = result_tables.section([*live, *sums, *cached])
    added = [line.split(" | ")[0] for line in section.splitlines() if " − KD 50" in line]
    assert added == [
        "| KD 50 + NST (poly) 50, live − KD 50, live",
        "| KD 50 + NST (poly) 50, cached, 4 views − KD 50, cached, 4 views",
    ]


def test_taps_that_differ_are_named_by_layer(tmp_path: Path) -> None:
    runs = [run for run in kept(tmp_path) if "nst_poly" in run["loss"]]
    for run, student in zip(runs, ("last", "layer2"), strict=True):
        run["loss"]["nst_poly"]["layers"] = [{"teacher": "last", "student": student}]
    section = result_tables.section(runs)
    assert "| NST (poly) 50 layers=last |" in section
    assert "| NST (poly) 50 layers=last→layer2 |" in section


def test_diverged_runs_are_counted(tmp_path: Path) -> None:
    """They have no accuracy."""
    folder = next(
        f.parent for f in (write_table(tmp_path / "outputs").parents[2]).rglob("summary.json") if "kd" in str(f)
    )
    (folder / "summary.json").unlink()
    (folder / "diverged.json").write_text(json.dumps({"reason": "the loss is nan"}))
    results.main(["add", str(tmp_path / "outputs"), str(tmp_path / "kept.jsonl")])
    runs = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert re.search(r"\(2\); diverged \(1\) \| 9\d\.\d\d \| \+1\.00", result_tables.section(runs))


def test_runs_that_fell_back_are_counted(tmp_path: Path) -> None:
    """They stand in the mean; the README's short tables have neither their number nor the median."""
    runs = kept(tmp_path)
    assert "fell back" not in result_tables.section(runs)
    fallen = next(run for run in runs if "kd" in run["loss"] and run["seed"] == 2)
    fallen["top1_by_epoch"] = {"1": 97.0, "2": 31.0}
    lines = result_tables.section(runs).splitlines()
    assert lines[0].startswith("| method, λ | last epoch | median | fell back |")
    assert lines[3].startswith("| KD 50 | 74.00 ± 37.24 (3) | 95.00 | 1 of 3 |")
    assert result_tables.section(runs, short=True).splitlines()[3].startswith("| KD 50 | 74.00 ± 37.24 (3) | -20.00")


def of_images(runs: list[run_lines.Record], images: int, epochs: int, gain: float) -> list[run_lines.Record]:
    """The runs as of so many training images, NST better by `gain` points."""
    found = json.loads(json.dumps(runs))
    for run in found:
        run["data"]["limit"], run["epochs"] = images, epochs
        last = list(run["top1_by_epoch"])[-1]
        run["top1_by_epoch"][last] += gain if "nst_poly" in run["loss"] else 0.0
    return found


def test_gains_by_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's section and its figure; while there are no runs it says so."""
    runs = kept(tmp_path)
    found = [*of_images(runs, 5000, 10, 0.0), *of_images(runs, 1000, 50, 3.0)]
    for folder in ("docs/images", "results"):
        (tmp_path / folder).mkdir(parents=True)
    page = tmp_path / "docs" / "page.md"
    page.write_text("Before\n<!-- gains: sizes.jsonl test -->\nold\n<!-- end of gains -->\nAfter\n")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "IMAGES", tmp_path / "docs" / "images")
    monkeypatch.setattr(results, "PAGES", (page,))
    results.main(["pages"])
    assert "-->\nNot measured yet.\n<!-- end" in page.read_text()
    (tmp_path / "results" / "sizes.jsonl").write_text("".join(json.dumps(run) + "\n" for run in found))
    results.main(["pages"])
    lines = page.read_text().splitlines()
    assert lines[2].endswith("(images/sizes.svg)")
    assert "| training images | 1,000 | 5,000 |" in lines
    assert r"| KD 50 | +1.00 ± 0.00 \[+1.00\] (3) | +1.00 ± 0.00 \[+1.00\] (3) |" in lines
    assert (
        len([line for line in lines if re.match(r"\| NST \(poly\) 50 − baseline \| \+4.05 ± .* \| \+1.05 ± ", line)])
        == 1
    )
    assert (lines[0], lines[-1]) == ("Before", "After")
    figure = (tmp_path / "docs" / "images" / "sizes.svg").read_text()
    assert ">NST (poly) 50</text>" in figure
    assert results.drawn(page) == {tmp_path / "docs" / "images" / "sizes.svg": figure}


def test_gains_compare_runs_of_one_setting(tmp_path: Path) -> None:
    runs = kept(tmp_path)
    with pytest.raises(ValueError, match=r"training images: all: gains need data\.limit"):
        result_tables.gain_section(runs, "")
    found = [*of_images(runs, 1000, 50, 0.0), *of_images(runs, 1000, 10, 0.0)]
    with pytest.raises(ValueError, match=r"1000: gains need .* one number of epochs"):
        result_tables.gain_section(found, "")
    found = of_images(runs, 1000, 50, 0.0)
    found[0]["optim"]["lr"] = 0.7
    with pytest.raises(ValueError, match="these differ in learning rate"):
        result_tables.gain_section(found, "")
