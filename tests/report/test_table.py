"""From run folders to tables: the numbers, the text, the files."""

import csv
import json
from pathlib import Path

import pytest
from tests.report.written import write_run, write_table

from nst.report.runs import all_runs, select
from nst.report.table import read_table
from nst.report.text import as_csv, as_markdown, cells
from nst.report.write import print_result, write_result


def test_numbers(tmp_path: Path):
    result = read_table(write_table(tmp_path), tmp_path)
    (group,) = result["groups"]
    student, kd, nst = group["rows"]
    assert student["last"]["mean"] == pytest.approx(6.0)  # errors 6, 5, 7
    assert student["last"]["std"] == pytest.approx(1.0)
    assert kd["last"]["mean"] == pytest.approx(5.0)  # the last epoch: 5, 4, 6
    assert kd["best"]["mean"] == pytest.approx(
        4.0
    )  # seed 2's best epoch, 3 % at epoch 1, is not used for anything else
    assert kd["difference"] == pytest.approx(0.53)
    assert (kd["paired"]["mean"], kd["paired"]["n"]) == (pytest.approx(-1.0), 3)
    assert kd["paired"]["half_width"] == pytest.approx(0.0, abs=1e-9)
    assert kd["verdict"] == "reproduced"
    assert (nst["last"]["n"], nst["asked"]) == (2, 3)
    assert nst["last"]["mean"] == pytest.approx(4.45)
    assert [row["rank"] for row in group["rows"]] == [3, 2, 1]
    assert [row["published_rank"] for row in group["rows"]] == [3, 2, 1]
    assert group["teacher"]["figure"] == pytest.approx(4.0)


def test_accuracy_tables_turn_the_comparison_round(tmp_path: Path):
    result = read_table(write_table(tmp_path, metric="accuracy"), tmp_path)
    student, kd, _ = result["groups"][0]["rows"]
    assert student["last"]["mean"] == pytest.approx(94.0)
    assert kd["paired"]["mean"] == pytest.approx(1.0)
    assert (student["rank"], kd["rank"]) == (3, 2)


def test_text_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = read_table(write_table(tmp_path), tmp_path)
    kd = result["groups"][0]["rows"][1]
    assert cells(kd) == (
        "KD", "5.00 ± 1.00 (3)", "2.52 … 7.48", "4.00 ± 1.00 (3)", "4.47", "+0.53", "-1.00 ± 0.00", "2 (2)",
        "reproduced",
    )  # fmt: skip
    assert "| KD | 5.00 ± 1.00 (3) |" in as_markdown(result)
    (line,) = [row for row in csv.DictReader(as_csv(result).splitlines()) if row["method"] == "kd"]
    assert (float(line["mean"]), float(line["published"]), line["verdict"]) == (pytest.approx(5), 4.47, "reproduced")
    print_result(result)
    printed = capsys.readouterr().out
    assert "5.00 ± 1.00 (3)" in printed
    assert "Runs missing, by method: NST <poly> 1." in printed
    assert "chosen on the test images" in printed


def test_reduced_is_said_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_table(tmp_path, reduced=True)
    result = read_table(folder, tmp_path)
    write_result(result, folder, tmp_path)
    print_result(result)
    written = [(folder / name).read_text() for name in ("table.md", "table.csv", "table.json", "page.html")]
    for text in [*written, capsys.readouterr().out]:
        assert "not comparable: reduced" in text
    for text in (written[0], written[3]):
        assert "A test (reduced)" in text
        assert "trainer.epochs: 2 (table: 400)" in text


def test_a_second_call_changes_nothing(tmp_path: Path):
    folder = write_table(tmp_path)
    contents = []
    for _ in range(2):
        write_result(read_table(folder, tmp_path), folder, tmp_path)
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] == contents[1]
    assert json.loads(contents[0]["table.json"])["groups"][0]["rows"][1]["by_seed"] == {"0": 5.0, "1": 4.0, "2": 6.0}


def test_diverged_runs_are_counted_and_no_result(tmp_path: Path):
    folder = write_table(tmp_path)
    kd = json.loads((folder / "plan.json").read_text())["groups"][0]["rows"][1]
    gone = tmp_path / kd["runs"][0]["folder"]
    (gone / "summary.json").unlink()
    (gone / "diverged.json").write_text('{"step": 3, "reason": "step 3: not finite"}')
    result = read_table(folder, tmp_path)
    row = result["groups"][0]["rows"][1]
    assert (row["diverged"], row["last"]["n"], row["asked"]) == (1, 2, 3)
    text = as_markdown(result)
    assert "| 5.00 ± 1.41 (2); diverged (1) |" in text
    assert "Diverged (number of seeds)" in text
    assert "Runs missing, by method: NST <poly> 1." in text
    (state,) = (run["state"] for run in all_runs(tmp_path) if run["folder"] == kd["runs"][0]["folder"])
    assert state.startswith("diverged after epoch")


def test_a_table_without_runs(tmp_path: Path):
    folder = write_table(tmp_path)
    for file in tmp_path.rglob("summary.json"):
        file.unlink()
    result = read_table(folder, tmp_path)
    write_result(result, folder, tmp_path)
    assert "not run" in (folder / "table.md").read_text()
    assert "No run of this group is finished" in (folder / "page.html").read_text()


def test_list_of_runs(tmp_path: Path):
    write_table(tmp_path)
    write_run(tmp_path / "elsewhere", "kd", 0, [50.0])
    runs = all_runs(tmp_path)
    assert len(runs) == 9
    best = select(runs, {}, "best")[0]
    assert (best["loss"], best["seed"], best["best"], best["best_epoch"], best["last"]) == ("kd", 2, 97.0, 1, 94.0)
    unfinished = select(runs, {"state": "epoch*"}, "last")
    assert [(run["loss"], run["state"], run["seconds"]) for run in unfinished] == [("nst_poly", "epoch 1 of 2", 1.5)]
    assert {run["loss"] for run in select(runs, {"loss": "kd,*poly"}, "seed")} == {"kd", "nst_poly"}
    assert [run["seed"] for run in select(runs, {"loss": "kd"}, "seed")] == [0, 1, 2]
    with pytest.raises(ValueError, match="no such field"):
        select(runs, {"los": "kd"}, "last")
