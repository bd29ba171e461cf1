"""A table's file: groups × methods, published figures of an epoch, files of one's own, and errors that name file and key."""

import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT

from nst.tables.file import read_table

HEAD = """title: Mine
source: nothing published
metric: accuracy
seeds: 1
"""
GROUP = """groups:
  - name: one
    title: big → small
    rows:
      - {name: student, label: Baseline, overrides: [loss=ce]}
      - {name: kd, label: KD, overrides: [loss=kd], published: 92.5}
"""
MATRIX = """epoch: last
groups:
  - {name: a, title: A, overrides: [model=resnet8], teacher: {published: 72.3}, layers: {teacher: stage3, student: stage3}}
  - {name: b, title: B, overrides: [model=resnet14], rows: [{name: vid, label: VID, overrides: [loss=vid]}]}
methods:
  - {name: student, label: Baseline, overrides: [loss=ce]}
  - {name: kd, label: KD, overrides: [loss=kd], tuned: true, by: third party}
  - {name: at, label: AT, by: third party, overrides: [loss=at], groups: [b]}
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


def test_groups_times_methods(folder: Path) -> None:
    (folder / "m.yaml").write_text(HEAD + MATRIX)
    first, second = read_table("m.yaml").groups
    assert [row.name for row in first.rows] == ["student", "kd"]
    assert [row.name for row in second.rows] == ["student", "kd", "at", "vid"]
    assert [row.overrides for row in second.rows[2:]] == [["model=resnet14", "loss=at"], ["model=resnet14", "loss=vid"]]
    figures = [(row.published, row.epoch, row.tuned, row.by) for row in (*first.rows, second.rows[2])]
    assert figures == [(69.1, "last", False, None), (70.7, "best", True, "authors"), (71, "last", False, "third party")]
    assert (first.teacher.published, first.teacher.epoch, first.layers.student) == (72.3, "last", "stage3")
    page = (ROOT / "docs" / "reproducing.md").read_text()
    (folder / "m.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    assert [[row.name for row in group.rows] for group in read_table("m.yaml").groups] == [
        ["baseline", "kd", "nst"],
        ["baseline", "kd"],
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds:", "seedz:", r"mine.yaml: seedz: there is no seedz; did you mean seeds\?"),
        ("seeds: 1", "seeds: 0", "mine.yaml: seeds=0: a number at least 1 is needed"),
        ("metric: accuracy\n", "", "mine.yaml: metric: .*missing mandatory value"),
        ("name: kd", "name: student", "rows: 'student': .*each name once"),
        ("name: kd", "name: ../kd", r"rows: '../kd': letters, digits"),
        ("title: Mine", "title: [", "mine.yaml: while parsing a flow sequence"),
        (GROUP, "groups: [{name: one, title: A, rows: []}]", "one: rows: at least one is needed"),
        (GROUP, MATRIX.replace("b: {at: 71}", "b: {att: 71}"), r"b: published: there is no att; did you mean at\?"),
        (GROUP, MATRIX.replace("at: 71", "at: high"), "groups: b: at: published: .*high"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder: Path, old: str, new: str, message: str) -> None:
    text = HEAD + GROUP
    assert old in text
    (folder / "mine.yaml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_table("mine.yaml")


def test_where_tables_are_looked_for(folder: Path) -> None:
    own = folder / "configs" / "table" / "mine.yaml"
    own.write_text(HEAD + GROUP)
    assert read_table("mine").title == read_table(str(own)).title == "Mine"
    assert read_table("quick/digits").title == "Handwritten digits, test accuracy"
    with pytest.raises(ValueError, match=r"table=mini: there is no mini; did you mean mine\?"):
        read_table("mini")
    for name in ("../mine", "/mine", ""):
        with pytest.raises(ValueError, match=f"table={name}: there is no "):
            read_table(name)
    (own.parent / "quick").mkdir()
    own.rename(own.parent / "quick" / "digits.yaml")
    with pytest.raises(ValueError, match=r"both .* pass the path: table=.*configs/table/quick/digits.yaml"):
        read_table("quick/digits")
