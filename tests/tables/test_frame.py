"""The frame of runs and its listing: what is read of a folder, what differs, means over seeds, formats, damage."""

import csv
import io
import json
from pathlib import Path

import pytest
from tests.tables.written import change, runs_of, write_table

from nst.tables.frame import collapsed, read_frame, read_run
from nst.tables.listing import list_runs
from nst.tables.plan import folder_of
from nst.tables.result import read_result


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    list_runs(arguments)
    return capsys.readouterr().out


def test_a_run_is_read_once(tmp_path: Path) -> None:
    plan = write_table(tmp_path)
    run = read_run(runs_of(plan, "kd")[2])
    known = {"loss": "kd", "seed": 2, "state": "finished", "test": 94.0, "best": 97.0, "best_epoch": 1, "train": 70.0}
    known |= {"curve": {1: 97.0, 2: 94.0}, "weights": {"kd": 16.0}, "collapsed": False}
    assert {key: run[key] for key in known} == known
    unfinished = read_run(runs_of(plan, "nst_poly")[2])
    assert (unfinished["state"], unfinished["last"], unfinished["seconds"]) == ("epoch 1 of 2", 91.0, 1.5)
    frame = read_frame(folder_of(run) for cell in plan.cells for run in cell.runs)
    assert (len(frame), frame["test"].notna().sum()) == (9, 8)


def test_noise_near_chance_is_no_collapse() -> None:
    assert not collapsed([12.0, 10.5, 60.0, 36.0], 10.0)
    assert collapsed([12.0, 60.0, 34.0, 80.0], 10.0)
    assert not collapsed([60.0, 3.0], None)


def test_a_damaged_run_is_named_with_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs_of(write_table(tmp_path), "kd")[1]
    change(folder / "config.json", "loss.kd", {})
    message = "config.json is damaged: weight is missing"
    with pytest.raises(ValueError, match=rf"seed1-\w+/{message}"):
        read_run(folder)
    text = listed(capsys, f"outputs={tmp_path / 'outputs'}")
    assert message in text.replace("\n", "")
    assert "8 runs in" in text


@pytest.mark.parametrize("kind", ["data", "teacher"])
def test_runs_of_other_images_or_of_another_teacher_do_not_stand_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:  # fmt: skip
    """A file changed between two runs of the same settings; the listing shows it as a setting in which they differ."""
    plan = write_table(tmp_path)
    read_result(plan)
    change(runs_of(plan, "kd")[1] / "summary.json", f"{kind}.sha256", "another")
    with pytest.raises(ValueError, match=f"cannot stand in one table: the {kind} changed under its name"):
        read_result(plan)
    assert f"{kind}.sha256=another" in listed(capsys, f"outputs={tmp_path / 'outputs'}", "loss=kd").replace(" ", "")


def test_seeds_of_a_configuration_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_table(tmp_path)
    text = listed(capsys, f"outputs={plan.request.outputs}")
    assert "9 runs in" in text
    assert "digits: resnet20 → resnet8" in text
    (line,) = [line for line in text.splitlines() if "kd 16" in line]
    assert [cell.strip() for cell in line.split("│")][1:6] == ["kd 16", "0.05 (step)", "2", "95.00 ± 1.00 (3)", "95.00"]
    assert "1 epoch 1 of 2, 2 finished" in text
    for folder in runs_of(plan, "kd")[1:]:
        change(folder / "config.json", "trainer.batch_size", 512)
        change(folder / "config.json", "loss.ce.\x1b[31m", "no control character of a terminal is printed")
    text = listed(capsys, f"outputs={plan.request.outputs}", "loss=kd,at", "sort=seed")
    assert "trainer.batch_size=512" in text
    assert "trainer.batch_size=64" in text
    assert "\x1b" not in text


def test_formats_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = write_table(tmp_path).request.outputs
    runs = json.loads(listed(capsys, f"outputs={outputs}", "format=json", "loss=kd"))
    assert [(run["seed"], run["last"]) for run in runs] == [(1, 96.0), (0, 95.0), (2, 94.0)]  # the best first
    rows = [*csv.DictReader(io.StringIO(listed(capsys, f"outputs={outputs}", "format=csv", "loss=kd")))]
    assert [row["last"] for row in rows] == ["96.0", "95.0", "94.0"]
    assert all((Path(outputs) / row["folder"]).is_dir() for row in rows)
    assert json.loads(listed(capsys, f"outputs={tmp_path / 'nowhere'}", "format=json")) == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [("los=kd", "did you mean loss"), ("format=xml", "table, json, csv"), ("now", "key=value"), ("sort=x", "sort=x")],
)  # fmt: skip
def test_wrong_arguments_are_named(tmp_path: Path, argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_runs([argument, f"outputs={tmp_path}"])
