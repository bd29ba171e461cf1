"""The command: what it asks for, the plan, and a whole small table run twice."""

import hashlib
import json
import shlex
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from nst.config import CONFIGS, RunConfig
from nst.dist import Dist
from nst.models import resnet8
from nst.models.weights import save_weights
from nst.reproduce import execute
from nst.reproduce.command import reproduce
from nst.reproduce.evidence import missing_layers
from nst.reproduce.plan import Plan, finished, make_plan
from nst.reproduce.request import Request, parse
from nst.run import execute as execute_run
from nst.runs.folder import RunFolder, RunLockedError, run_folder

TINY = (
    "model=resnet8", "teacher=resnet8", "teacher.min_accuracy=0", "data.limit=40", "trainer.epochs=2",
    "trainer.batch_size=16", "trainer.heatmaps=false", "teacher.train.epochs=1", "optim.lr=0.01",
)  # fmt: skip


def test_request():
    settings = parse(["table=paper/cifar10", "seeds=3", "epochs=0.1", "data.limit=2000", "plan=true", "data.root=x"])
    assert (settings.table, settings.seeds, settings.epochs, settings.plan) == ("paper/cifar10", 3, 0.1, True)
    assert settings.overrides == ("data.limit=2000", "data.root=x")
    assert settings.folder == "paper/cifar10/epochs=0.1,data.limit=2000"
    assert parse(["table=quick/digits"]).folder == "quick/digits/full"
    assert parse(["table=x", "optim=adamw", "layers=last", "experiment=own"]).overrides == (
        "optim=adamw",
        "layers=last",
        "experiment=own",
    )
    given = parse(["table=quick/digits", "teacher.weights=/some/where/t.pt", "loss.kd.layers=[{a: b}]"])
    assert given.folder == "quick/digits/loss.kd.layers=-a-b-,teacher.weights=t.pt"
    assert settings.command == ("nst reproduce table=paper/cifar10 seeds=3 epochs=0.1 data.limit=2000 data.root=x")
    arguments = ["table=quick/digits", "layers=[{teacher: last, student: last}]", "data.root=/it's here"]
    assert shlex.split(parse(arguments).command)[2:] == arguments


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=3"], "which table"),
        (["table=x", "seeds=0"], "whole number"),
        (["table=x", "epochs=3"], "fraction"),
        (["table=x", "epochs=ten"], "fraction"),
        (["table=x", "seed=3"], "seeds=N"),
        (["table=x", "seds=3"], "seds=3: unknown key; did you mean seeds?"),
        (["table=x", "epoch=0.1"], "did you mean epochs?"),
        (["table=x", "now"], "key=value"),
        (["table=x", "plan=maybe"], "true or false"),
        (["table=x", "page=maybe"], "true or false"),
        (["table=x", "plan=true", "page=true"], "one of them"),
    ],
)
def test_request_errors(words, message):
    with pytest.raises(ValueError, match=message):
        parse(words)


@pytest.fixture(scope="module")
def crd(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(Request("crd/cifar100", 1, outputs=str(tmp_path_factory.mktemp("crd"))), CONFIGS)


def test_unknown_table_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean paper/cifar10"):
        make_plan(Request("paper/cifar"), CONFIGS)


@pytest.mark.parametrize(
    ("override", "message"),
    [("optim.lrr=1", "Did you mean optim.lr"), ("recipe=foo", "foo: no such recipe"), ("optim.lr=abc", "lr is 'abc'")],
)
def test_an_error_in_a_table_names_its_row(tmp_path: Path, override: str, message: str):
    file = own_table(tmp_path, [override])
    with pytest.raises(ValueError, match=rf"table={file}: groups: g: rows: kd: .*") as error:
        make_plan(Request(str(file)), CONFIGS)
    assert message in str(error.value)


def test_missing_taps_are_reported_before_the_runs(tmp_path: Path):
    file = own_table(tmp_path, [])
    assert not [*missing_layers(make_plan(Request(str(file)), CONFIGS))]
    file.write_text(file.read_text().replace("rows:", "layers: {teacher: last, student: stage9}\n    rows:"))
    (line,) = missing_layers(make_plan(Request(str(file)), CONFIGS))
    assert "layers.student=stage9 of g in the table's file: unknown layer 'stage9'" in line


def own_table(folder: Path, overrides: list[str]) -> Path:
    """The file of a table of a baseline and KD with these overrides."""
    file = folder / "own.yaml"
    file.write_text(
        "title: t\nsource: s\nmetric: accuracy\nimages: [1437, 360]\nseeds: 1\ngroups:\n  - name: g\n    title: g\n    rows:\n"
        "      - {name: student, label: B, run: [loss=ce]}\n"
        f"      - {{name: kd, label: KD, run: {json.dumps(['loss=kd', *overrides])}}}\n"
    )
    return file


def test_plan_of_the_paper_s_table():
    plan = make_plan(Request("paper/cifar10", 3), CONFIGS)
    assert [cell.row.published for cell in plan.cells] == [5.80, 4.47, 4.75, 4.64, 4.87, 4.39, 4.48, 4.54, 4.21, 4.54]
    (teacher,) = plan.teachers
    assert (teacher.model["name"], teacher.teacher.model, teacher.trainer.epochs) == ("preact_resnet1001", None, 200)
    for cell in plan.cells:
        assert [run.seed for run in cell.runs] == [0, 1, 2]
        assert {run.teacher.seed for run in cell.runs} == {0}
        assert cell.comparable
        assert not cell.changes
    assert len({run_folder(asdict(run)) for cell in plan.cells for run in cell.runs}) == 30


def test_a_reduced_plan_says_so():
    plan = make_plan(Request("quick/digits", 1, 0.4, overrides=("data.limit=200", "data.root=null")), CONFIGS)
    assert all(cell.reduced and not cell.comparable for cell in plan.cells)
    assert plan.cells[0].changes == ("data.limit: 200 (table: null)", "trainer.epochs: 2 (table: 5)")
    assert "trainer.epochs=2" in plan.cells[1].command
    assert "teacher.train.epochs=6" in plan.cells[1].command
    (teacher,) = plan.teachers
    assert teacher.trainer.epochs == 6


def test_a_limit_of_the_tables_own_reduces_nothing():
    plan = make_plan(Request("quick/cifar10_5000", 1), CONFIGS)
    assert all(cell.comparable and not cell.reduced for cell in plan.cells)
    fewer = make_plan(Request("quick/cifar10_5000", 1, overrides=("data.limit=500",)), CONFIGS)
    assert all(cell.reduced for cell in fewer.cells)


def test_where_the_photographs_lie_is_no_other_experiment():
    plan = make_plan(Request("quick/imagenette", 1, overrides=("data.root=photos",)), CONFIGS)
    assert all(cell.comparable and not cell.changes for cell in plan.cells)
    with pytest.raises(ValueError, match=r"rows: student: `data\.root` is required"):
        make_plan(Request("quick/imagenette", 1), CONFIGS)


def test_how_a_run_is_computed_leaves_it_comparable():
    overrides = ("trainer.precision=bf16", "teacher.weights=/home/me/t.pt")
    plan = make_plan(Request("quick/digits", 1, overrides=overrides), CONFIGS)
    assert all(cell.comparable and not cell.reduced for cell in plan.cells)
    assert "trainer.precision: bf16 (table: fp32)" in plan.cells[0].changes
    assert "teacher.weights: t.pt (table: null)" in plan.cells[1].changes
    assert plan.teachers == []
    other = make_plan(Request("quick/digits", 1, overrides=("optim.lr=0.07",)), CONFIGS)
    assert not any(cell.comparable or cell.reduced for cell in other.cells)


@pytest.mark.parametrize(("views", "comparable"), [("4", False), ("5", True), ("all", True)])
def test_fewer_views_than_epochs_are_another_experiment(views: str, comparable: bool):
    overrides = ("cache.views=16", f"cache.views={views}")
    plan = make_plan(Request("quick/digits", 1, overrides=overrides), CONFIGS)
    assert {cell.comparable for cell in plan.cells if cell.runs[0].cache.views} == {comparable}
    assert plan.cells[0].comparable  # the baseline


def test_the_teacher_cache_is_written_once_for_all_rows():
    overrides = ("cache.views=all", "cache.large=false")
    plan = make_plan(Request("quick/digits", 2, overrides=overrides), CONFIGS)
    modes = {cell.row.name: cell.runs[0].cache.views for cell in plan.cells}
    live = {"student", "fitnet", "nst_gaussian"}  # their summaries are as large as the features, or they ask for none
    assert {name for name, mode in modes.items() if not mode} == live
    (store,) = plan.caches
    targets = sorted(node["_target_"].split(".")[-1] for node in store.loss.values())
    assert targets == ["AT", "CrossEntropy", "KD", "NST", "NST"]
    assert all(cell.comparable for cell in plan.cells)
    assert "cache" not in plan.cells[2].command
    assert "cache.views=16" in plan.cells[1].command


def test_the_pairs_of_crd_s_table(crd: Plan):
    assert len(crd.table.groups) == 13
    assert len(crd.cells) == 190
    assert len(crd.teachers) == 6


def test_conventions_differ_in_what_they_say(tmp_path: Path):
    plan = make_plan(Request("conventions/digits", 1), CONFIGS)
    assert len(plan.cells) == 17
    terms = [cell.runs[0].loss["nst_poly"] for cell in plan.cells[1:]]
    assert len({str(term) for term in terms}) == 16
    assert {term["convention"] for term in terms} == {"paper", "official", "crd"}
    assert {term["layers"] for term in terms} == {"last", "last_pre_relu", "stages", "stages_pre_relu"}


def digest(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "lock"
    }


def test_a_whole_table_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    request = Request("quick/digits", 2, outputs=str(tmp_path / "outputs"), overrides=TINY)
    reproduce(Request("quick/digits", 2, plan=True, outputs=str(tmp_path / "outputs"), overrides=TINY))
    assert "17 runs, 17 to do" in capsys.readouterr().out
    assert not (tmp_path / "outputs").exists()
    other = make_plan(request, CONFIGS).cells[1].runs[0]  # a second process is at this run
    held = RunFolder(run_folder(asdict(other)))
    held.open(asdict(other))
    monkeypatch.setattr(execute, "PATIENCE", 0.0)
    reproduce(request)
    printed = capsys.readouterr().out
    assert "teacher resnet8 (1 of 1 left)\n" in printed
    assert "Baseline, seed 0 (16 of 16 left)" in printed
    assert printed.index("KD + NST (poly), seed 0") < printed.index("Baseline, seed 1")
    assert "KD + NST (poly), seed 1 (2 of 16 left)" in printed
    assert "not finished, run by other processes: KD, seed 0\n" in printed
    reproduce(replace(request, page=True))
    printed = capsys.readouterr().out
    assert " left)" not in printed
    assert "digits, 40 training images, 2 epochs, test accuracy (reduced)" in printed
    held.close()
    assert not finished(other)
    reproduce(request)
    assert "KD, seed 0 (1 of 16 left)" in capsys.readouterr().out
    assert finished(other)
    first = digest(tmp_path / "outputs")
    table = tmp_path / "outputs" / "tables" / request.folder
    names = {file.name for file in table.iterdir()}
    assert names == {"lock", "plan.json", "table.json", "table.csv", "table.md", "page.html", "evidence"}
    assert {f.name for f in (table / "evidence").iterdir()} == {
        "resnet8.json", "resnet8-teacher.png", "resnet8-student.png", "resnet8-nst_poly.png",
    }  # fmt: skip
    reproduce(request)
    assert "0 to do" in capsys.readouterr().out
    assert digest(tmp_path / "outputs") == first


@pytest.mark.parametrize(("weights", "message"), [("none", "no such file"), ("other", "of another architecture")])
def test_weights_of_a_teacher_are_read_before_the_baselines_train(tmp_path: Path, weights: str, message: str):
    file = tmp_path / "teacher.safetensors"
    if weights == "other":
        save_weights(file, torch.nn.Linear(2, 2), {})
    request = Request("quick/digits", 1, outputs=str(tmp_path / "outputs"), overrides=(f"teacher.weights={file}",))
    with pytest.raises(ValueError, match=message):
        reproduce(request)
    assert not (tmp_path / "outputs").exists()


ONE_METHOD = """title: One method
source: nothing published
metric: accuracy
images: [1437, 360]
seeds: 1
groups:
  - {name: one, title: one, rows: [{name: student, label: A, run: [loss=ce]}, {name: kd, label: B, run: [loss=kd]}]}
"""


@pytest.fixture(scope="module")
def finished_table(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A baseline and a method, one seed, of given teacher weights."""
    folder = tmp_path_factory.mktemp("finished")
    table, weights = folder / "one.yaml", folder / "teacher.safetensors"
    table.write_text(ONE_METHOD)
    save_weights(weights, resnet8(10, 1), {})
    overrides = ("data=digits", *TINY, f"teacher.weights={weights}")
    request = Request(str(table), 1, outputs=str(folder / "outputs"), overrides=overrides)
    reproduce(request)
    return request


def test_other_taps_in_the_table_are_measured_anew(finished_table: Request):
    """A measurement that cannot be made leaves none of the earlier ones."""
    folder = make_plan(finished_table, CONFIGS).folder
    file, table = folder / "evidence" / "one.json", Path(finished_table.table)
    last = json.loads(file.read_text())["mmd"]["kd"]
    found = {}
    for stage in ("stage2", "nowhere"):
        table.write_text(ONE_METHOD.replace("rows:", f"layers: {{teacher: {stage}, student: {stage}}}, rows:"))
        reproduce(replace(finished_table, page=True))
        found[stage] = json.loads(file.read_text())["mmd"]["kd"] if file.exists() else None
    assert found["stage2"] != last
    assert found["nowhere"] is None
    assert not list(file.parent.iterdir())


def test_no_run_is_added_to_those_of_another_teacher(finished_table: Request):
    """A file of weights that was replaced: an error before more runs."""
    save_weights(Path(finished_table.table).with_name("teacher.safetensors"), resnet8(10, 1), {"another": "file"})
    with pytest.raises(ValueError, match=r"kd/seed0-\w+ is finished, with a teacher of SHA-256 .* now has"):
        reproduce(replace(finished_table, seeds=2))
    assert not list(Path(finished_table.outputs).rglob("seed1-*"))


def test_a_run_that_diverges_or_is_taken_stops_no_other(crd: Plan, monkeypatch: pytest.MonkeyPatch):
    """Several groups with rows of the same names: one run diverges, one is taken by a quicker process."""
    students = [run for cell in crd.cells for run in cell.runs]
    diverging, taken = students[0], students[1]
    tried = []

    def execute(run: RunConfig, *args: object, wait: bool = False) -> None:
        folder = run_folder(asdict(run))
        if wait and folder.exists():
            return
        tried.append(folder)
        if run is diverging:
            folder.mkdir(parents=True)
            (folder / "diverged.json").write_text('{"step": 3, "reason": "too large"}')
            raise FloatingPointError("too large")
        folder.mkdir(parents=True)
        (folder / "summary.json").touch()
        if run is taken:
            raise RunLockedError

    monkeypatch.setattr(execute, "attempt", partial(execute.attempt, do=execute_run))
    monkeypatch.setattr(execute, "dataset", lambda run, sets: None)
    outcome = execute.execute(crd, Dist(0, 1, torch.device("cpu")))
    assert tried == list(dict.fromkeys(run_folder(asdict(run)) for run in [*crd.teachers, *students]))
    assert list(outcome.failed.values()) == [f"{crd.cells[0].group.title}: Baseline, seed 0: too large"]
    assert outcome.elsewhere == []
    tried.clear()
    assert execute.execute(crd, Dist(0, 1, torch.device("cpu"))).failed == outcome.failed
    assert tried == []  # it would diverge again
