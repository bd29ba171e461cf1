"""A table's file: settings × methods, published figures of an epoch, files of one's own, and errors that name file and key."""

import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT

from nst.tables.file import read_table
from nst.tables.plan import make_plan
from nst.tables.request import Request, parse

HEAD = """title: Mine
source: nothing published
metric: accuracy
seeds: 1
"""
GROUP = """groups:
  - name: one
    title: big → small
    rows:
      - {name: student, label: Baseline, run: [loss=ce]}
      - {name: kd, label: KD, run: [loss=kd], published: 92.5}
"""
MATRIX = """epoch: last
pairs:
  - {name: a, title: A, overrides: [model=resnet8], teacher: {published: 72.3}, layers: {teacher: stage3, student: stage3}}
  - {name: b, title: B, overrides: [model=resnet14]}
methods:
  - {name: student, label: Baseline, overrides: [loss=ce]}
  - {name: kd, label: KD, overrides: [loss=kd], tuned: true, by: third party}
  - {name: at, label: AT, by: third party, overrides: [loss=at], pairs: [b]}
published:
  a: {student: 69.1, kd: {published: 70.7, epoch: best, by: authors}}
  b: {at: 71}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `configs/table/`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "configs" / "table").mkdir(parents=True)
    return tmp_path


def test_pairs_times_methods(folder: Path) -> None:
    (folder / "m.yaml").write_text(HEAD + MATRIX)
    first, second = read_table("m.yaml").groups
    assert [row.name for row in first.rows] == ["student", "kd"]
    assert [row.name for row in second.rows] == ["student", "kd", "at"]
    assert second.rows[2].run == ["model=resnet14", "loss=at"]
    assert [(row.published, row.epoch, row.tuned) for row in first.rows] == [
        (69.1, "last", False),
        (70.7, "best", True),
    ]
    assert [row.published for row in second.rows] == [None, None, 71]
    assert [row.by for row in (*first.rows, second.rows[2])] == [None, "authors", "third party"]
    assert (first.teacher.published, first.teacher.epoch, first.layers.student) == (72.3, "last", "stage3")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds:", "seedz:", r"mine.yaml: seedz: no such key; did you mean seeds\?"),
        ("label: KD", "lable: KD", r"mine.yaml: lable of a row: no such key; did you mean label\?"),
        ("seeds: 1", "seeds: many", "mine.yaml: seeds: .*many"),
        ("published: 92.5", "published: high", "mine.yaml: published of a row: .*high"),
        ("published: 92.5", "published: 92.5, epoch: first", "kd: epoch is 'first'; one of last, best, unknown"),
        ("metric: accuracy", "metric: loss", "metric is 'loss'; error or accuracy"),
        ("metric: accuracy\n", "", "mine.yaml: metric is missing"),
        ("name: kd", "name: student", "student occurs 2 times"),
        ("name: kd", "name: ../kd", r"the name '../kd' becomes part of file names"),
        ("name: kd", "name: teacher", "a row cannot be called teacher"),
        ("name: one", "name: ..", r"the name '..' becomes part of file names"),
        ("title: Mine", "title: [", "mine.yaml: invalid YAML"),
        (GROUP, "", "groups is missing"),
        (GROUP, "groups: [{name: one, title: A, rows: []}]", "one: rows is empty"),
        (GROUP, "groups: none", "mine.yaml: groups: a list is needed"),
        (GROUP, MATRIX + GROUP, "either groups, or pairs and methods"),
        (GROUP, MATRIX.split("methods:")[0], "methods is missing"),
        (GROUP, MATRIX.replace("pairs: [b]", "pairs: [c]"), "methods: at: pairs: c is not among them"),
        (GROUP, MATRIX.replace("b: {at: 71}", "b: {att: 71}"), "published.b: att is not among them; did you mean at"),
        (GROUP, MATRIX.replace("b: {at: 71}", "c: {at: 71}"), "published: c is not among them"),
        (GROUP, MATRIX.replace("at: 71", "at: high"), "published.b.at: a number or .*found 'high'"),
        (GROUP, MATRIX.replace("epoch: best", "epok: best"), "published.a.kd: a number or"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder: Path, old: str, new: str, message: str) -> None:
    text = HEAD + GROUP
    assert old in text
    (folder / "mine.yaml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_table("mine.yaml")


@pytest.mark.parametrize(
    ("old", "new", "overrides", "message"),
    [
        ("[loss=ce]", "[loss=ce, seed=3]", (), "rows: student: seed=3: a table runs seeds 0 to N-1"),
        ("[loss=kd]", "[loss=kd, outputs=elsewhere]", (), "rows: kd: outputs=elsewhere: pass outputs=FOLDER"),
        ("[loss=kd]", "[loss=kd, dry_run=true]", (), "rows: kd: dry_run=true: plan=true shows the plan"),
        ("", "", ("dry_run=true",), "dry_run=true: plan=true shows the plan"),
        ("", "", ("++seed=3",), "seed=3: a table runs seeds"),
        ("", "", ("loss=kd",), "rows: student has the teacher resnet20; the first row is the baseline"),
        ("[loss=ce]", "[loss=at]", (), "rows: student has the teacher resnet20"),
        ("[loss=kd]", "[loss=kd, model=resnet14]", (), r"kd has another student \(resnet14\) than student \(resnet8\)"),
        (GROUP, GROUP + "      - {name: big, label: B, run: [loss=kd, teacher=resnet56]}\n", (), r"big has another teacher \(resnet56\)"),
    ],
)  # fmt: skip
def test_rows_that_do_not_belong_in_a_table_are_named(
    folder: Path, old: str, new: str, overrides: tuple[str, ...], message: str
) -> None:
    text = HEAD + "overrides: [data=digits, model=resnet8, teacher=resnet20]\n" + GROUP
    (folder / "mine.yaml").write_text(text.replace(old, new) if old else text)
    with pytest.raises(ValueError, match=message):
        make_plan(Request("mine.yaml", overrides=overrides))


def test_where_tables_are_looked_for(folder: Path) -> None:
    own = folder / "configs" / "table" / "mine.yaml"
    own.write_text(HEAD + GROUP)
    assert read_table("mine").title == "Mine"
    assert read_table("quick/digits").title == "Handwritten digits, test accuracy"
    assert read_table(str(own)).title == "Mine"
    with pytest.raises(ValueError, match=r"table=mini: no such table; did you mean mine\?"):
        read_table("mini")
    (own.parent / "quick").mkdir()
    own.rename(own.parent / "quick" / "digits.yaml")
    with pytest.raises(ValueError, match=r"both .* pass the path: table=.*configs/table/quick/digits.yaml"):
        read_table("quick/digits")


def test_a_name_is_no_path(folder: Path) -> None:
    (folder / "x.yaml").write_text(HEAD + GROUP)
    assert parse(["table=configs/../x.yaml"]).folder == Path("outputs/tables/x/full")
    for name in ("../x", "/x", "quick/../../x", "", "quick//digits"):
        with pytest.raises(ValueError, match="a name such as quick/digits is needed"):
            parse([f"table={name}"])
    with pytest.raises(ValueError, match="no such file"):
        read_table("y.yaml")


def test_the_table_in_the_documentation(folder: Path) -> None:
    page = (ROOT / "docs" / "reproducing.md").read_text()
    (folder / "mine.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    first, second = read_table("mine.yaml").groups
    assert [row.name for row in first.rows] == ["baseline", "kd", "nst"]
    assert [row.name for row in second.rows] == ["baseline", "kd"]
    assert len(make_plan(Request("mine.yaml", 1)).cells) == 5
