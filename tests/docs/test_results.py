"""What the pages say was measured is what the files in results/ say."""

import re
from pathlib import Path

import pandas as pd
import pytest
from scripts import results
from tests.tables.written import change, write_table

import result_figures
import results as script
from nst.tables.statistics import sample

FILES = sorted((results.ROOT / "results").glob("*.json*"))


@pytest.mark.parametrize("page", results.PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_the_files_say(page: Path) -> None:
    assert script.written(page) == page.read_text(), "python scripts/results.py pages"


def test_the_figures_draw_what_the_files_say() -> None:
    """Each names the digest of its data; their bytes are matplotlib's."""
    for file, digest, text in result_figures.drawn():
        assert digest in text
        assert digest in file.read_text(), "python scripts/results.py pages"


def test_the_published_column_stands_beside_its_runs() -> None:
    runs = script.read_lines(results.ROOT / "results" / "zoo.jsonl")
    best, last = sample([max(curve.values()) for curve in runs["curve"]]), sample(runs["test"])
    page = (results.ROOT / "docs" / "tables" / "published.md").read_text()
    assert f"| Baseline (the teacher) | 92.37 | {best} | {last} | – |" in page


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_file_has_its_command_and_names_no_folder_of_the_machine(file: Path) -> None:
    assert f"`{file.name}`" in (results.ROOT / "results" / "README.md").read_text()
    assert not results.FOLDERS.search(file.read_text())


@pytest.fixture
def kept(tmp_path: Path) -> pd.DataFrame:
    """Runs of three methods as `add` keeps them."""
    write_table(tmp_path)
    script.main(["add", str(tmp_path / "outputs"), str(tmp_path / "kept.jsonl")])
    return script.read_lines(tmp_path / "kept.jsonl")


def test_a_run_is_kept_once(tmp_path: Path, kept: pd.DataFrame) -> None:
    """Also where another machine did it again; and one that tables do not tell apart from a known one is an error."""
    assert len(kept) == 8  # the ninth is not finished
    (tmp_path / "outputs").rename(tmp_path / "elsewhere")
    file = tmp_path / "kept.jsonl"
    words, lines = ["add", str(tmp_path / "elsewhere"), str(file)], file.read_text()
    script.main(words)
    assert file.read_text() == lines
    assert str(tmp_path) not in lines
    config = next(file for file in sorted((tmp_path / "elsewhere").rglob("config.json")) if "kd" in str(file))
    change(config, "trainer.batch_size", 256)
    with pytest.raises(ValueError, match=r"kept.jsonl has a run that differs in trainer.batch_size: 256, 64 alone"):
        script.main(words)


@pytest.mark.parametrize("key", ["data.validation", "trainer.ema"])
def test_runs_of_other_data_or_recipes_are_no_rows_of_one_table(kept: pd.DataFrame, key: str) -> None:
    changed = next(run for run in kept["settings"] if "loss.kd.weight" in run)
    for run in kept["settings"]:
        run.setdefault(key, 0.5)
    changed[key] = 0.1
    with pytest.raises(ValueError, match=f"differ in {key}: .* do not belong"):
        script.section(kept)


def test_rows_are_means_over_seeds_beside_the_baseline(kept: pd.DataFrame) -> None:
    lines = script.section(kept).splitlines()
    assert lines[2:4] == [
        "| baseline | 94.00 ± 1.00 (3) | 94.00 | – | 70.0 |",
        "| KD 16 | 95.00 ± 1.00 (3) | 95.00 | +1.00 ± 0.00 | 70.0 |",
    ]
    assert lines[4].startswith("| NST (poly) 50 | 95.55 ± 0.07 (2) | 95.55 | +1.05")
    assert lines[8].startswith(r"| NST (poly) 50 − baseline | +1.05 ± 5.72 \[+1.05\] (2) |")
    assert lines[-1].endswith("Measured with commit abc on cpu, threads: 1.")


def test_collapsed_and_diverged_runs_are_counted(kept: pd.DataFrame) -> None:
    """A collapsed one stays in the mean, a diverged one has no accuracy; the README's short tables have no counts."""
    kept.loc[3, "collapsed"] = True
    kept.loc[4, "diverged"] = "the loss is nan"
    text = script.section(kept)
    assert text.startswith("| method, λ | last epoch | median | collapsed |")
    assert re.search(r"\(2\); diverged \(1\) \| 9\d\.\d\d \| 1 of 3 \|", text)
    assert "collapsed" not in script.section(kept, short=True)
