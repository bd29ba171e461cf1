"""What a table's request asks for, and the runs that it needs."""

import shlex
from pathlib import Path

import pytest
from omegaconf.errors import OmegaConfBaseException
from tests.tables.written import planned

from nst.tables.command import Request, parse
from nst.tables.plan import folder_of, make_plan

SMALL = """title: Digits, 20 and 40 images
source: nothing published
metric: accuracy
seeds: 2
along: data.limit
overrides: [data=digits, model=resnet8, teacher=resnet8]
groups:
  - {name: "40", title: 40 images, overrides: [data.limit=40, trainer.epochs=1]}
  - {name: "20", title: 20 images, overrides: [data.limit=20, trainer.epochs=2]}
methods:
  - {name: student, label: Baseline, overrides: [loss=ce]}
  - {name: kd, label: KD, overrides: [loss=kd]}
  - {name: at, label: AT, overrides: [loss=at]}
"""


def test_request() -> None:
    settings = parse(["table=paper/cifar10", "seeds=3", "epochs=0.1", "data.limit=2000", "plan=true", "data.root=x"])
    assert (settings.table, settings.seeds, settings.epochs, settings.plan) == ("paper/cifar10", 3, 0.1, True)
    assert settings.overrides == ["data.limit=2000", "data.root=x"]
    assert settings.folder == Path("outputs/tables/paper/cifar10/epochs=0.1,data.limit=2000")
    assert parse(["table=zoo/cifar10", "optim=adamw", "experiment=own"]).overrides == ["optim=adamw", "experiment=own"]
    given = parse(["table=quick/digits", "teacher.weights=/some/where/t.pt", "loss.kd.layers=[{a: b}]"])
    assert given.folder.name == "loss.kd.layers=-a-b-,teacher.weights=t.pt"
    arguments = ["table=quick/digits", "layers=[{teacher: last, student: last}]", "data.root=/it's here"]
    assert shlex.split(parse(arguments).command)[2:] == arguments


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("seeds=3", "missing mandatory value: table"),
        ("table=x seeds=0", "seeds=0: a number at least 1 is needed"),
        ("table=x epoch=0.1", "epoch=0.1: there is no epoch; did you mean epochs?"),
        ("table=quick/digits plan=true page=true", "one of them"),
    ],
)
def test_request_errors(words: str, message: str) -> None:
    with pytest.raises((ValueError, OmegaConfBaseException), match=message):
        parse(words.split())


def test_plan_of_the_paper_s_table() -> None:
    plan = make_plan(Request("paper/cifar10", 3))
    assert [cell.row.published for cell in plan.cells] == [5.80, 4.47, 4.75, 4.64, 4.87, 4.39, 4.48, 4.54, 4.21, 4.54]
    (teacher,) = plan.teachers
    assert (teacher.model["name"], teacher.teacher.model, teacher.trainer.epochs) == ("preact_resnet1001", None, 200)
    for cell in plan.cells:
        assert [run.seed for run in cell.runs] == [0, 1, 2]
        assert {run.teacher.seed for run in cell.runs} == {0}
        assert (cell.label, cell.changes) == ("", ())
    assert len({folder_of(run) for cell in plan.cells for run in cell.runs}) == 30


def test_what_was_changed_is_said_and_decides_what_is_comparable() -> None:
    plan = planned("data.limit=200", "data.root=null", epochs=0.4)
    assert {cell.label for cell in plan.cells} == {"reduced"}
    assert plan.cells[0].changes == ("data.limit: 200 (table: null)", "trainer.epochs: 1 (table: 2)")
    assert "trainer.epochs=1 " in plan.cells[1].command + " "
    (teacher,) = plan.teachers
    assert teacher.trainer.epochs == 6
    computed = planned("trainer.precision=bf16", "teacher.weights=/me/t.pt")
    assert {cell.label for cell in computed.cells} == {"computed otherwise"}
    assert "teacher.weights: t.pt (table: null)" in computed.cells[1].changes
    assert computed.teachers == []


def test_the_teacher_cache_is_written_once_for_all_rows_of_a_group(tmp_path: Path) -> None:
    """Rows whose targets are as large as the features, or that ask for none, stay live; fewer views than epochs are another experiment."""
    rows = ["  - {name: student, label: Baseline, overrides: [loss=ce]}"]
    rows += [f"  - {{name: {name}, label: {name}, overrides: [loss={name}]}}" for name in ("fitnet", "kd", "at")]
    head = SMALL.partition("methods:\n")[0].replace("along: data.limit\n", "")
    (tmp_path / "small.yaml").write_text("\n".join([f"{head}methods:", *rows]))
    plan = make_plan(Request(str(tmp_path / "small.yaml"), overrides=["cache.views=1"]))
    assert [bool(cell.runs[0].cache.views) for cell in plan.cells] == 2 * [False, False, True, True]
    assert ["cache.views=1" in cell.command for cell in plan.cells if cell.row.name != "student"] == 2 * [
        False,
        True,
        True,
    ]
    assert [cell.label for cell in plan.cells] == ["", "", *2 * ["computed otherwise"], "", "", *2 * ["changed"]]
    names = [sorted(node["_target_"].split(".")[-1] for node in cache.loss.values()) for cache in plan.caches]
    assert names == 2 * [["AT", "CrossEntropy", "KD"]]


@pytest.mark.parametrize(
    ("old", "new", "overrides", "message"),
    [
        ("[loss=at]", "[loss=at, optim.lrr=1]", (), "groups: 40: rows: at: .*did you mean optim.lr"),
        ("[loss=at]", "[loss=at, seed=3]", (), "rows: at: no row has a seed"),
        ("[loss=ce]", "[loss=kd]", (), "rows: student: the first row is the baseline"),
        ("[loss=at]", "[loss=at, model=resnet14]", (), "rows: at has another student, resnet14"),
        ("[loss=at]", "[loss=at, teacher=resnet56]", (), "rows: at has another teacher, resnet56"),
        ("along: data.limit", "along: data.limt", (), "along: data.limt: there is no data.limt; did you mean data.limit"),
        ("[loss=at]", "[loss=at, data.limit=30]", (), "one number above 0 a group.*found 40: 40; 40: 30; 20: 20; 20: 30"),
        ("seeds: 2", "seeds: 1", ("data.limit=30",), "found 40: 30; 20: 30"),
        ("along: data.limit", "along: data.mean", (), "one number above 0 a group"),
    ],
)  # fmt: skip
def test_an_error_in_a_table_is_named(tmp_path: Path, old: str, new: str, overrides: tuple[str, ...], message: str) -> None:  # fmt: skip
    assert old in SMALL
    (tmp_path / "sizes.yaml").write_text(SMALL.replace(old, new))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make_plan(Request(str(tmp_path / "sizes.yaml"), overrides=[*overrides]))
