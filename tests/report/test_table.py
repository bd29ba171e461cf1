"""From run folders to tables: the numbers, the text, the files."""

import csv
import json
from pathlib import Path

import pytest
from tests.report.written import write_table

from nst.report.listing import grouped, read_runs, sections
from nst.report.page import headline
from nst.report.runs import fell_back
from nst.report.settings import shown
from nst.report.table import read_table
from nst.report.text import as_csv, as_markdown, cells, columns, notes, settings_text
from nst.report.write import print_result, write_result


def summary_changed(outputs: Path, name: str, seed: int, **values: object) -> None:
    """Change values of a run's summary."""
    file = outputs / "digits" / "big-small" / name / f"seed{seed}-00000000" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_difference_on_few_images_is_stated_in_images(tmp_path: Path):
    folder = write_table(tmp_path, metric="accuracy")
    row = {"label": "KD", "rank": 1, "last": {"mean": 61.11}, "paired": {"n": 2, "mean": 100 / 18, "half_width": 0.0}}
    first = {"label": "baseline", "rank": 2, "last": {"mean": 55.56}}
    few = headline({"rows": [first, row | {"test_images": 18}]}, "accuracy")
    assert few.endswith(
        "+5.56 ± 0.00 points: more than the variation between seeds explains, and 1.0 of the 18 test images."
    )
    many = headline({"rows": [first, row | {"test_images": 10000}]}, "accuracy")
    assert many.endswith(": more than the variation between seeds explains.")
    assert read_table(folder, tmp_path)["groups"][0]["rows"][0]["test_images"] == 360


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
    assert (nst["last"]["n"], nst["planned"]) == (2, 3)
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
    shown = {name: cells(kd)[name] for name in columns(result["groups"][0])}
    assert shown == {
        "method": "KD", "Δ vs. baseline": "-1.00 ± 0.00", "λ": "kd 50 †", "last epoch": "5.00 ± 1.00 (3)", "median": "5.00",
        "95 % interval": "2.52 … 7.48", "best epoch": "4.00 ± 1.00 (3)", "published": "4.47 (unknown)",
        "Δ vs. published": "+0.53 (last)", "rank (published)": "2 (2)", "verdict": "reproduced",
    }  # fmt: skip
    assert "| KD | -1.00 ± 0.00 | 5.00 ± 1.00 (3) | 5.00 | kd 50 † |" in as_markdown(result)
    (line,) = [row for row in csv.DictReader(as_csv(result).splitlines()) if row["method"] == "kd"]
    assert (float(line["mean"]), float(line["published"]), line["verdict"]) == (pytest.approx(5), 4.47, "reproduced")
    print_result(result)
    printed = capsys.readouterr().out
    assert "5.00 ± 1.00 (3)" in printed
    assert "Runs missing, by method: NST <poly> 1." in printed
    assert "selected on the test images" in printed


def test_runs_of_changed_code_are_reported(tmp_path: Path):
    folder = write_table(tmp_path)
    written_with = {"kd": ("a", "a", "b"), "nst_poly": ("b", "b")}
    for name, digests in written_with.items():
        for seed, digest in enumerate(digests):
            summary_changed(tmp_path, name, seed, sources={"loss": digest, "mine.net": "same"})
    (note,) = [note for note in notes(read_table(folder, tmp_path)) if "same code" in note]
    assert note == "Not all runs are of the same code: loss has changed between them, also between the seeds of KD."
    runs, _ = read_runs(tmp_path)
    groups = grouped(sections(runs)["digits", "big", "small"], "last")
    kd = {group["settings"].get("code.loss.sha256"): group["seeds"] for group in groups if group["loss"] == "kd"}
    assert kd == {"a": [0, 1], "b": [2]}


@pytest.mark.parametrize(
    ("data", "text"),
    [({}, "all"), ({"limit": 5000, "validation": 0.1}, "5000"), ({"validation": 0.1}, "all but 10 % held out")],
)
def test_held_out_images_are_no_training_images(data: dict[str, float], text: str):
    config = {"data": data, "optim": {}, "trainer": {"epochs": 1}}
    assert shown(config, None)["training images"] == text


def test_reduced_is_stated_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
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
    assert (row["diverged"], row["last"]["n"], row["planned"]) == (1, 2, 3)
    text = as_markdown(result)
    assert "| 5.00 ± 1.41 (2) | 5.00 |" in text
    assert "| 1 of 3 |" in text
    assert "Runs that fell back: 0; that diverged: 1. Diverged: stopped by a non-finite loss" in text
    assert "Runs missing, by method: NST &lt;poly&gt; 1." in text


def test_a_table_without_runs(tmp_path: Path):
    folder = write_table(tmp_path)
    for file in tmp_path.rglob("summary.json"):
        file.unlink()
    result = read_table(folder, tmp_path)
    write_result(result, folder, tmp_path)
    assert "not run" in (folder / "table.md").read_text()
    assert "No run of this group is finished" in (folder / "page.html").read_text()


def change_plan(folder: Path, row: int, **values: object) -> None:
    """Other values in one row of the plan."""
    plan = json.loads((folder / "plan.json").read_text())
    plan["groups"][0]["rows"][row] |= values
    (folder / "plan.json").write_text(json.dumps(plan))


def test_a_figure_of_the_best_epoch_is_compared_with_the_best_epoch(tmp_path: Path):
    folder = write_table(tmp_path)
    change_plan(folder, 1, epoch="best")
    result = read_table(folder, tmp_path)
    row = result["groups"][0]["rows"][1]
    assert row["difference"] == pytest.approx(4.00 - 4.47)
    assert (cells(row)["published"], cells(row)["Δ vs. published"]) == ("4.47 (best)", "-0.47 (best)")
    assert (cells(row)["last epoch"], cells(row)["best epoch"]) == ("5.00 ± 1.00 (3)", "4.00 ± 1.00 (3)")
    change_plan(folder, 1, epoch="last")
    row = read_table(folder, tmp_path)["groups"][0]["rows"][1]
    assert cells(row)["Δ vs. published"] == "+0.53 (last)"


def test_a_best_epoch_on_validation_images_is_not_compared_with_one_on_test_images(tmp_path: Path):
    folder = write_table(tmp_path)
    change_plan(folder, 1, epoch="best")
    for file in tmp_path.rglob("kd/*/summary.json"):
        file.write_text(file.read_text().replace('"evaluated_on": "test"', '"evaluated_on": "val"'))
    row = read_table(folder, tmp_path)["groups"][0]["rows"][1]
    assert (row["difference"], row["verdict"]) == (None, "not comparable: our best epoch is one on validation images")
    change_plan(folder, 1, epoch="last")  # the last epoch is evaluated on the test images
    assert cells(read_table(folder, tmp_path)["groups"][0]["rows"][1])["Δ vs. published"] == "+0.53 (last)"


def test_a_teacher_measured_on_validation_images_says_so(tmp_path: Path):
    folder = write_table(tmp_path)
    assert "Teacher big: 4.00 (published 4.04)." in as_markdown(read_table(folder, tmp_path))
    for file in tmp_path.rglob("summary.json"):
        file.write_text(file.read_text().replace('"name": "big"', '"name": "big", "evaluated_on": "val"'))
    assert "Teacher big: 4.00 on the val images (published 4.04)." in as_markdown(read_table(folder, tmp_path))


def test_a_tuned_weight_has_no_mark(tmp_path: Path):
    folder = write_table(tmp_path)
    change_plan(folder, 1, tuned=True)
    _, kd, nst = read_table(folder, tmp_path)["groups"][0]["rows"]
    assert (cells(kd)["λ"], cells(nst)["λ"]) == ("kd 50", "nst_poly 50 †")


def test_settings_that_differ_between_rows_are_columns(tmp_path: Path):
    folder = write_table(tmp_path)
    for file in tmp_path.glob("digits/big-small/kd/*/config.json"):
        config = json.loads(file.read_text())
        config["optim"]["lr"] = 0.2
        file.write_text(json.dumps(config))
    (group,) = read_table(folder, tmp_path)["groups"]
    assert [cells(row)["learning rate"] for row in group["rows"]] == ["0.1 (cosine)", "0.2 (cosine)", "0.1 (cosine)"]
    assert "learning rate" in columns(group)
    assert "learning rate" not in settings_text(group)


def test_a_row_without_a_finished_run_makes_no_setting_differ(tmp_path: Path):
    folder = write_table(tmp_path)
    for file in tmp_path.glob("digits/big-small/kd/*/summary.json"):
        file.unlink()
    (group,) = read_table(folder, tmp_path)["groups"]
    assert "test images 360" in settings_text(group)
    assert "test images" not in columns(group)


def test_runs_that_fell_back_are_counted(tmp_path: Path):
    """From 90 % to 40 % where chance is 10 %: more than half of the gain."""
    folder = write_table(tmp_path)
    line = '{"kind": "eval", "step": 15, "epoch": 1.5, "top1": 40.0}\n'
    (file,) = tmp_path.glob("digits/big-small/kd/seed1-*/metrics.jsonl")
    file.write_text(file.read_text().replace('{"kind": "eval", "step": 20', f'{line}{{"kind": "eval", "step": 20'))
    result = read_table(folder, tmp_path)
    assert [row["fell_back"] for row in result["groups"][0]["rows"]] == [0, 1, 0]
    assert "Runs that fell back: 1; that diverged: 0." in as_markdown(result)


def test_noise_near_chance_is_no_fall():
    def events(*values: float) -> list[dict[str, float]]:
        return [{"top1": value} for value in values]

    assert not fell_back(events(12.0, 10.5, 60.0, 36.0), 10.0)
    assert fell_back(events(12.0, 60.0, 34.0, 80.0), 10.0)


def test_a_damaged_run_is_named_with_its_key(tmp_path: Path):
    folder = write_table(tmp_path)
    (file,) = tmp_path.glob("digits/big-small/kd/seed1-*/summary.json")
    summary = json.loads(file.read_text())
    file.write_text(json.dumps(summary | {"test": {"top1": "96"}}))
    with pytest.raises(ValueError, match=r"seed1-.*summary.json is damaged: test.top1 is '96'"):
        read_table(folder, tmp_path)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"summary.json is damaged"):
        read_table(folder, tmp_path)


@pytest.mark.parametrize("place", ["../../elsewhere", "/etc", "a//b", ""])
def test_a_plan_leads_nowhere_else(tmp_path: Path, place: str):
    folder = write_table(tmp_path)
    change_plan(folder, 1, runs=[{"seed": 0, "folder": place}])
    with pytest.raises(ValueError, match="no folder below"):
        read_table(folder, tmp_path)


@pytest.mark.parametrize("kind", ["data", "teacher"])
def test_runs_of_other_images_or_of_another_teacher_do_not_stand_in_one_table(tmp_path: Path, kind: str):
    """A file changed between two runs of the same settings; a limit of images is another setting."""
    table = write_table(tmp_path)
    for other in tmp_path.glob("digits/big-small/nst_poly/*/summary.json"):
        other.unlink()
    first, second, third = (tmp_path / f"digits/big-small/kd/seed{seed}-00000000/summary.json" for seed in (0, 1, 2))
    for file, digest in ((first, "old"), (second, "new"), (third, "less")):
        summary = json.loads(file.read_text())
        summary["data"] = {"sha256": digest if kind == "data" else "same"}
        summary["teacher"]["sha256"] = digest if kind == "teacher" else "same"
        if file is third:
            summary["config"]["data"]["limit"] = 20
        file.write_text(json.dumps(summary))
    message = (
        f"seed0-00000000 and .*seed1-00000000 cannot stand in one table: .* of the {kind} are the same.*old… and new…"
    )
    with pytest.raises(ValueError, match=message):
        read_table(table, tmp_path)
    second.unlink()
    read_table(table, tmp_path)
