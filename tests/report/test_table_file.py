"""A table's file: settings × methods, published figures of an epoch, files of one's own, and errors that name file and key."""

import sys
from pathlib import Path

import pytest
import yaml
from tests.report.test_reproduce import TINY as SMALL

from nst.config import CONFIGS
from nst.reproduce.command import reproduce
from nst.reproduce.plan import make_plan
from nst.reproduce.request import Request, parse
from nst.reproduce.table import read_table

TINY = tuple(word for word in SMALL if not word.startswith(("model=", "teacher=")))
HEAD = """title: Mine
source: nothing published
metric: accuracy
images: [100, 10]
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
  - {name: kd, label: KD, overrides: [loss=kd], tuned: true}
  - {name: at, label: AT, overrides: [loss=at], pairs: [b]}
published:
  a: {student: 69.1, kd: {published: 70.7, epoch: best}}
  b: {at: 71}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `configs/table/`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "configs" / "table").mkdir(parents=True)
    return tmp_path


def test_pairs_times_methods(folder: Path):
    (folder / "m.yaml").write_text(HEAD + MATRIX)
    first, second = read_table("m.yaml", CONFIGS).groups
    assert [row.name for row in first.rows] == ["student", "kd"]
    assert [row.name for row in second.rows] == ["student", "kd", "at"]
    assert second.rows[2].run == ["model=resnet14", "loss=at"]
    assert [(row.published, row.epoch, row.tuned) for row in first.rows] == [
        (69.1, "last", False),
        (70.7, "best", True),
    ]
    assert [row.published for row in second.rows] == [None, None, 71]
    assert (first.teacher.published, first.teacher.epoch, first.layers.student) == (72.3, "last", "stage3")


def test_a_table_of_13_by_14_is_one_file(folder: Path):
    pairs = [{"name": f"p{i}", "title": f"P {i}", "overrides": [f"seed={i}"]} for i in range(13)]
    methods = [{"name": f"m{i}", "label": f"M {i}", "overrides": [f"loss=m{i}"]} for i in range(14)]
    published = {f"p{i}": {f"m{j}": 50 + i + j / 10 for j in range(14)} for i in range(13)}
    content = yaml.safe_load(HEAD) | {"pairs": pairs, "methods": methods, "published": published}
    (folder / "large.yaml").write_text(yaml.safe_dump(content))
    table = read_table("large.yaml", CONFIGS)
    cells = [(group.name, row.name, row.published, row.run) for group in table.groups for row in group.rows]
    assert len(cells) == 13 * 14
    assert cells[15] == ("p1", "m1", pytest.approx(51.1), ["seed=1", "loss=m1"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds:", "seedz:", r"mine.yaml: seedz: no such key; did you mean seeds\?"),
        ("label: KD", "lable: KD", r"mine.yaml: lable of a row: no such key; did you mean label\?"),
        ("seeds: 1", "seeds: many", "mine.yaml: seeds: .*many"),
        ("seeds: 1", "seeds: 0", "mine.yaml: seeds is 0; at least 1"),
        ("published: 92.5", "published: high", "mine.yaml: published of a row: .*high"),
        ("published: 92.5", "published: 92.5, epoch: first", "kd: epoch is 'first'; one of last, best, unknown"),
        ("metric: accuracy", "metric: loss", "metric is 'loss'; error or accuracy"),
        ("metric: accuracy\n", "", "mine.yaml: metric is missing"),
        ("images: [100, 10]", "images: [100]", "images is .*the numbers of training and test images"),
        ("name: kd", "name: student", "student occurs 2 times"),
        ("name: kd", "name: ../kd", r"the name '../kd' becomes part of file names"),
        ("name: kd", "name: teacher", "a row cannot be called teacher"),
        ("name: one", "name: ..", r"the name '..' becomes part of file names"),
        ("title: Mine", "title: [", "mine.yaml: invalid YAML"),
        (GROUP, "", "groups is missing"),
        (GROUP, "groups: [{name: one, title: A, rows: []}]", "one: rows is empty"),
        (GROUP, "groups: [{name: one, title: A}]", "rows.* is missing"),
        (GROUP, "groups: none", "mine.yaml: groups: a list is needed"),
        (HEAD + GROUP, "- a\n- b\n", "mine.yaml: keys are needed"),
        (GROUP, MATRIX + GROUP, "either groups, or pairs and methods"),
        (GROUP, MATRIX.split("methods:")[0], "methods is missing"),
        (GROUP, MATRIX.replace("pairs: [b]", "pairs: [c]"), "methods: at: pairs: c is not among them"),
        (GROUP, MATRIX.replace("b: {at: 71}", "b: {att: 71}"), "published.b: att is not among them; did you mean at"),
        (GROUP, MATRIX.replace("b: {at: 71}", "c: {at: 71}"), "published: c is not among them"),
        (GROUP, MATRIX.replace("at: 71", "at: high"), "published.b.at: a number or .*found 'high'"),
        (GROUP, MATRIX.replace("epoch: best}", "epok: best}"), "published.a.kd: a number or"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder: Path, old: str, new: str, message: str):
    text = HEAD + GROUP
    assert old in text
    (folder / "mine.yaml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_table("mine.yaml", CONFIGS)


@pytest.mark.parametrize(
    ("old", "new", "overrides", "message"),
    [
        ("[loss=ce]", "[loss=ce, seed=3]", (), "rows: student: seed=3: a table runs seeds 0 to N-1"),
        ("[loss=kd]", "[loss=kd, outputs=elsewhere]", (), "rows: kd: outputs=elsewhere: pass outputs=FOLDER"),
        ("[loss=kd]", "[loss=kd, dry_run=true]", (), "rows: kd: dry_run=true: plan=true shows the plan"),
        ("", "", ("dry_run=true",), "dry_run=true: plan=true shows the plan"),
        ("", "", ("++seed=3",), "seed=3: a table runs seeds"),
        ("", "", ("trainer.prune_after=5",), "trainer.prune_after=5: a table needs whole runs"),
        ("", "", ("loss=kd",), "rows: student has the teacher resnet20; the first row is the baseline"),
        ("[loss=ce]", "[loss=at]", (), "rows: student has the teacher resnet20"),
        ("[loss=kd]", "[loss=kd, model=resnet14]", (), r"kd has another student \(resnet14\) than student \(resnet8\)"),
        (GROUP, GROUP + "      - {name: big, label: B, run: [loss=kd, teacher=resnet56]}\n", (), r"big has another teacher \(resnet56\)"),
    ],
)  # fmt: skip
def test_rows_that_do_not_belong_in_a_table_are_named(
    folder: Path, old: str, new: str, overrides: tuple[str, ...], message: str
):
    text = HEAD + "overrides: [data=digits, model=resnet8, teacher=resnet20]\n" + GROUP
    (folder / "mine.yaml").write_text(text.replace(old, new) if old else text)
    with pytest.raises(ValueError, match=message):
        make_plan(Request("mine.yaml", overrides=overrides), CONFIGS)


def test_where_tables_are_looked_for(folder: Path):
    own = folder / "configs" / "table" / "mine.yaml"
    own.write_text(HEAD + GROUP)
    assert read_table("mine", CONFIGS).title == "Mine"
    assert read_table("quick/digits", CONFIGS).title == "Handwritten digits, test accuracy"
    assert read_table(str(own), CONFIGS).title == "Mine"
    with pytest.raises(ValueError, match=r"table=mini: no such table; did you mean mine\?"):
        read_table("mini", CONFIGS)
    (own.parent / "quick").mkdir()
    own.rename(own.parent / "quick" / "digits.yaml")
    with pytest.raises(ValueError, match=r"both .* pass the path: table=configs/table/quick/digits.yaml"):
        read_table("quick/digits", CONFIGS)


def test_a_name_is_no_path(folder: Path):
    (folder / "x.yaml").write_text(HEAD + GROUP)
    assert parse(["table=configs/../x.yaml"]).folder == "x/full"
    for name in ("../x", "/x", "quick/../../x", "", "quick//digits"):
        with pytest.raises(ValueError, match="a name such as quick/digits is needed"):
            parse([f"table={name}"])
    with pytest.raises(ValueError, match="no such file"):
        read_table("y.yaml", CONFIGS)


def test_networks_and_settings_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]):
    """A network's settings from `./configs`, its class from a module of the working directory; it has no named layers."""
    (folder / "own_network_of_a_test.py").write_text(
        "from torch import nn\n\n\ndef small(num_classes, channels):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, num_classes))\n"
    )
    (folder / "configs" / "model").mkdir()
    (folder / "configs" / "model" / "small.yaml").write_text(
        "_target_: own_network_of_a_test.small\nname: small\nnum_classes: ${data.num_classes}\nchannels: ${data.channels}\n"
    )
    (folder / "configs" / "table" / "mine.yaml").write_text(
        HEAD + "overrides: [data=digits, model=small, teacher=resnet8]\n" + GROUP.replace("92.5", "92.5, epoch: best")
    )
    request = Request("mine", overrides=TINY)
    run = make_plan(request, CONFIGS).cells[0].runs[0]
    assert run.model["_target_"] == "own_network_of_a_test.small"
    reproduce(request)
    assert "big → small: the networks are not evaluated: unknown layer 'last'" in capsys.readouterr().out
    text = (folder / "outputs" / "tables" / request.folder / "table.md").read_text()
    assert "92.50 (best)" in text
    assert "No published" not in text


def test_the_table_in_the_documentation(folder: Path):
    page = (Path(__file__).parents[2] / "docs" / "reproducing.md").read_text()
    (folder / "mine.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    first, second = read_table("mine.yaml", CONFIGS).groups
    assert [row.name for row in first.rows] == ["baseline", "kd", "nst"]
    assert [row.name for row in second.rows] == ["baseline", "kd"]
    assert len(make_plan(Request("mine.yaml", 1), CONFIGS).cells) == 5


def test_headings_are_those_of_the_runs(folder: Path):
    plan = make_plan(Request("quick/digits", 1), CONFIGS)
    assert (plan.table.title, plan.table.groups[0].title) == ("Handwritten digits, test accuracy", "resnet20 → resnet8")
    plan = make_plan(Request("quick/digits", 1, overrides=("model=resnet14", "data.limit=40")), CONFIGS)
    assert plan.table.groups[0].title == "resnet20 → resnet14"
    assert plan.table.title == "digits, 40 training images, 5 epochs, test accuracy"
