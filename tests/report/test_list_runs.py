"""The listing of runs: what differs, means over seeds, filters, formats, damage."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.written import write_run, write_table

from nst.report.list_runs import list_runs, parse
from nst.report.listing import grouped, read_runs, sections, select


def change(folder: Path, key: str, value: Any) -> None:
    """Another value in a run's configuration."""
    config = json.loads((folder / "config.json").read_text())
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_select(tmp_path: Path):
    write_table(tmp_path)
    write_run(tmp_path / "elsewhere", "kd", 0, [50.0])
    runs, damaged = read_runs(tmp_path)
    assert (len(runs), damaged) == (9, [])
    best = select(runs, {}, "best")[0]
    assert (best["loss"], best["seed"], best["best"], best["best_epoch"], best["last"]) == ("kd", 2, 97.0, 1, 94.0)
    unfinished = select(runs, {"state": "epoch*"}, "last")
    assert [(run["loss"], run["state"], run["seconds"]) for run in unfinished] == [("nst_poly", "epoch 1 of 2", 1.5)]
    assert {run["loss"] for run in select(runs, {"loss": "kd,*poly"}, "seed")} == {"kd", "nst_poly"}
    assert [run["seed"] for run in select(runs, {"loss": "kd"}, "seed")] == [0, 1, 2]
    with pytest.raises(ValueError, match="no such field"):
        select(runs, {"los": "kd"}, "last")


def test_seeds_of_a_configuration_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_table(tmp_path)
    list_runs([f"outputs={tmp_path}"])
    out = capsys.readouterr().out
    assert "9 runs in" in out
    assert out.index("digits: big → small") < out.index("digits: small, no teacher")
    lines = [" ".join(line.replace("│", " ").split()) for line in out.splitlines()]
    assert "nst_poly 50 0.1 (cosine) 2 95.55 ± 0.07 (2) 95.55 95.55 ± 0.07 (2) 12.5 1 epoch 1 of 2, 2 finished" in lines
    assert "kd 50 0.1 (cosine) 2 95.00 ± 1.00 (3) 95.00 96.00 ± 1.00 (3) 13.0 3 finished" in lines
    assert "differs in" not in out


def test_runs_that_fell_back_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """They stand in the mean; the median beside it shows what one of them does to it."""
    write_table(tmp_path)
    list_runs([f"outputs={tmp_path}"])
    assert "fell back" not in capsys.readouterr().out
    (folder,) = tmp_path.glob("digits/big-small/kd/seed2-*")
    for file in (folder / "summary.json", folder / "metrics.jsonl"):
        file.write_text(file.read_text().replace("94.0", "31.0"))
    list_runs([f"outputs={tmp_path}"])
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "kd 50 0.1 (cosine) 2 74.00 ± 37.24 (3) 95.00 96.00 ± 1.00 (3) 1 13.0 3 finished" in lines
    list_runs([f"outputs={tmp_path}", "each=true", "loss=kd", "fell_back=True"])
    assert "1 run in" in capsys.readouterr().out


def test_what_differs_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_table(tmp_path)
    for seed, (key, value) in enumerate((("optim.lr", 0.4), ("loss.kd.weight", 16.0), ("optim.momentum", 0.8))):
        change(next(tmp_path.glob(f"digits/big-small/kd/seed{seed}-*")), key, value)
    (records,) = [r for key, r in sections(read_runs(tmp_path)[0]).items() if key == ("digits", "big", "small")]
    kd = [group for group in grouped(records, "last") if group["loss"] == "kd"]
    found = {(g["rate"], g["weights"]["kd"], g["settings"]["optim.momentum"], g["n"]) for g in kd}
    assert found == {(0.4, 50.0, None, 1), (0.1, 16.0, None, 1), (0.1, 50.0, 0.8, 1)}
    list_runs([f"outputs={tmp_path}", "loss=kd"])
    out = capsys.readouterr().out
    for text in ("kd 16 ", "0.4 (cosine)", "optim.momentum=0.8", "optim.momentum=null"):
        assert text in out


def test_teachers_and_data_are_kept_apart(tmp_path: Path):
    """Of another teacher, other weights of a teacher of one name, and other data: no mean over them."""
    write_table(tmp_path)
    runs = [next(tmp_path.glob(f"digits/big-small/kd/seed{seed}-*")) for seed in range(3)]
    change(runs[0], "teacher.model.name", "huge")
    change(runs[1], "data.name", "cifar10")
    change(runs[2], "teacher.weights", "other.pt")
    found = sections(read_runs(tmp_path)[0])
    assert list(found) == [
        ("cifar10", "big", "small"), ("digits", "big", "small"), ("digits", "huge", "small"), ("digits", "none", "small"),
    ]  # fmt: skip
    groups = grouped(found["digits", "big", "small"], "last")
    assert {(g["loss"], g["settings"]["teacher.weights"]) for g in groups} == {("kd", "other.pt"), ("nst_poly", None)}


def test_the_weights_of_pairs_of_layers_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_table(tmp_path)
    for seed, pair in enumerate(({}, {"weight": 1.0}, {"weight": 0.5})):
        folder = next(tmp_path.glob(f"digits/big-small/kd/seed{seed}-*"))
        change(folder, "loss.kd.layers", [{"teacher": "last", "student": "last", **pair}])
    list_runs([f"outputs={tmp_path}", "loss=kd"])
    out = capsys.readouterr().out
    assert out.count("loss.kd.layers=last ") == 2
    assert out.count("loss.kd.layers=last×0.5 ") == 1


@pytest.mark.parametrize("kind", ["data", "teacher"])
def test_other_images_or_another_teacher_under_one_name_are_kept_apart(tmp_path: Path, kind: str):
    """As in a table, which refuses them; a run that is not finished has no such digest."""
    write_table(tmp_path)
    for seed in range(3):
        file = next(tmp_path.glob(f"digits/big-small/kd/seed{seed}-*")) / "summary.json"
        summary = json.loads(file.read_text())
        summary[kind] = (summary.get(kind) or {}) | {"sha256": "0" if seed else "1"}
        file.write_text(json.dumps(summary))
    kd = [g for r in sections(read_runs(tmp_path)[0]).values() for g in grouped(r, "last") if g["loss"] == "kd"]
    assert sorted((g["settings"][f"{kind}.sha256"], g["seeds"]) for g in kd) == [("0", [1, 2]), ("1", [0])]


def test_where_things_lie_tells_nothing_apart(tmp_path: Path):
    write_table(tmp_path)
    for seed, folder in enumerate(tmp_path.glob("digits/big-small/kd/seed*")):
        change(folder, "data.root", f"/disk{seed}")
        change(folder, "trainer.device", f"cuda:{seed}")
    (kd,) = [g for r in sections(read_runs(tmp_path)[0]).values() for g in grouped(r, "last") if g["loss"] == "kd"]
    assert (kd["n"], kd["seeds"], kd["settings"]) == (3, [0, 1, 2], {})


def test_a_run_of_an_earlier_version_has_the_defaults_of_later_keys(tmp_path: Path):
    """Seeds that were run before and after a key was added are one line."""
    write_table(tmp_path)
    folder = next(tmp_path.glob("digits/big-small/kd/seed1-*"))
    for key, default in (
        ("trainer.mixup", 0.0),
        ("trainer.ema", None),
        ("data.augment", None),
        ("cache.large", None),
    ):
        change(folder, key, default)
    change(next(tmp_path.glob("digits/big-small/kd/seed0-*")), "cache.large", False)
    (kd,) = [g for r in sections(read_runs(tmp_path)[0]).values() for g in grouped(r, "last") if g["loss"] == "kd"]
    assert (kd["n"], kd["seeds"], kd["settings"]) == (3, [0, 1, 2], {})
    change(folder, "trainer.mixup", 0.2)
    kd = [g for r in sections(read_runs(tmp_path)[0]).values() for g in grouped(r, "last") if g["loss"] == "kd"]
    assert sorted((g["n"], g["settings"]["trainer.mixup"]) for g in kd) == [(1, 0.2), (2, 0.0)]


def test_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_table(tmp_path)
    list_runs([f"outputs={tmp_path}", "loss=kd", "format=json"])
    (group,) = json.loads(capsys.readouterr().out)
    assert (group["last"]["mean"], group["n"], group["seeds"]) == (95.0, 3, [0, 1, 2])
    list_runs([f"outputs={tmp_path}", "loss=kd", "format=csv"])
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["last_mean"], row["weights"], row["n"]) == ("95.0", '{"kd": 50.0}', "3")
    list_runs([f"outputs={tmp_path}", "loss=kd", "format=csv", "each=true", "sort=seed"])
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert [(row["seed"], row["last"]) for row in rows] == [("0", "95.0"), ("1", "96.0"), ("2", "94.0")]
    list_runs([f"outputs={tmp_path}", "loss=kd", "each=true"])
    out = capsys.readouterr().out
    assert "big-small/kd/seed0-00000000" in out
    assert out.index("96.00") < out.index("95.00") < out.index("94.00")


def directory(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "bad JSON": ("summary.json", lambda f: f.write_text("{"), "summary.json is damaged"),
    "no object": ("config.json", lambda f: f.write_text("[1]"), "config.json is damaged: it holds no JSON object"),
    "no UTF-8": ("config.json", lambda f: f.write_bytes(b"\xff\xfe{"), "config.json is damaged"),
    "missing field": ("summary.json", lambda f: f.write_text('{"test": {}}'), "summary.json is damaged: test.top1 is missing"),
    "wrong type": ("config.json", lambda f: change(f.parent, "seed", "no"), "config.json is damaged: seed is 'no'"),
    "no weight": ("config.json", lambda f: change(f.parent, "loss.kd", 3), "loss.kd has no weight"),
    "a folder for config": ("config.json", directory, "config.json is damaged: Is a directory"),
    "a folder for summary": ("summary.json", directory, "summary.json is damaged: Is a directory"),
    "a folder for metrics": ("metrics.jsonl", directory, "metrics.jsonl is damaged: Is a directory"),
    "a folder for diverged": ("diverged.json", directory, "diverged.json is damaged: Is a directory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("form", ["table", "json"])
def test_a_damaged_run_is_named_and_the_others_are_listed(
    tmp_path: Path, kind: str, form: str, capsys: pytest.CaptureFixture[str]
):
    write_table(tmp_path)
    name, damage, message = DAMAGE[kind]
    folder = next(tmp_path.glob("digits/big-small/kd/seed1-*"))
    if name == "diverged.json":
        (folder / "summary.json").unlink()
    damage(folder / name)
    list_runs([f"outputs={tmp_path}", f"format={form}", "loss=kd"])
    out, err = capsys.readouterr()
    (line,) = [line for line in (out + err).splitlines() if "is damaged" in line]
    assert message in line
    assert "seed1-00000000" in line
    if form == "json":
        assert json.loads(out)[0]["seeds"] == [0, 2]
    else:
        assert "94.50 ± 0.71 (2)" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["outputs=nowhere"], "outputs=nowhere: no such folder"),
        (["format=xml"], "format=xml: one of table, json, csv"),
        (["each=yes"], "each=yes: true or false"),
        (["kd"], "'kd': key=value is needed"),
    ],
)
def test_errors_in_words(words: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        list_runs(words)


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    list_runs([f"outputs={tmp_path}"])
    assert "0 runs in" in capsys.readouterr().out
    list_runs([f"outputs={tmp_path}", "format=json"])
    assert json.loads(capsys.readouterr().out) == []
    list_runs(["--help"])
    assert "each=true" in capsys.readouterr().out
    assert parse(["loss=kd", "data=digits"]).filters == {"loss": "kd", "data": "digits"}


def test_names_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path, "kd", 0, [50.0])
    change(next(tmp_path.glob("digits/big-small/kd/seed0-*")), "optim.schedule", "\x1b[2Jgone[red]")
    list_runs([f"outputs={tmp_path}"])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]" in out
