"""Tables whose groups are values of one setting: the gain over the baseline along it, and what NST adds to other losses."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.report.test_reproduce import TINY

from nst.config import CONFIGS
from nst.data.batch import Schedule
from nst.report.along import CELL, Method, gain_rows, gains, nst_gains, nst_rows
from nst.report.gain_figure import HEIGHT, LABEL, extent, gain_figure, spread_out
from nst.report.page import gain_file
from nst.report.table import read_table
from nst.reproduce.axis import axis_values
from nst.reproduce.command import reproduce
from nst.reproduce.plan import make_plan
from nst.reproduce.request import Request
from nst.reproduce.table import read_table as read_file

SMALL = """title: Digits, 20 and 40 images
source: nothing published
metric: accuracy
images: [1437, 360]
seeds: 2
along: data.limit
overrides: [data=digits, model=resnet8, teacher=resnet8, cache.views=2]
pairs:
  - {name: "40", title: 40 images, overrides: [data.limit=40, trainer.epochs=1]}
  - {name: "20", title: 20 images, overrides: [data.limit=20, trainer.epochs=2]}
methods:
  - {name: student, label: Baseline, overrides: [loss=ce]}
  - {name: at, label: AT, overrides: [loss=at]}
  - {name: nst, label: NST, overrides: [loss=nst_poly]}
  - {name: at_nst, label: AT + NST, overrides: ["loss=[at,nst_poly]"]}
"""
OVERRIDES = tuple(word for word in TINY if not word.startswith(("model=", "teacher=", "data.limit", "trainer.epochs")))
BASE = {0: 70.0, 1: 71.0, 2: 72.0}


def method(label: str, weights: dict[str, float], plus: tuple[float, float, float], **lost: int) -> Method:
    """Accuracies above the baseline's, by seed."""
    return Method(label, weights, {seed: BASE[seed] + more for seed, more in enumerate(plus)}, **lost)


@pytest.fixture
def values() -> dict[float, list[Method]]:
    kd = method("KD", {"kd": 16.0}, (-1.0, 0.0, -20.0), fell_back=1)
    both = method("KD + NST", {"kd": 16.0, "nst_poly": 50.0}, (1.0, 3.0, -17.0))
    nst = method("NST", {"nst_poly": 50.0}, (3.0, 4.0, 5.0))
    base = method("Baseline", {}, (0.0, 0.0, 0.0))
    many = [method("KD", {"kd": 16.0}, (1.0, 1.0, 2.0)), method("NST", {"nst_poly": 50.0}, (-1.0, -1.0, -1.0))]
    return {1000: [base, kd, nst, both], 50000: [base, *many]}


def test_gains_are_paired_by_seed(values: dict[float, list[Method]]) -> None:
    """Half of the interval of (3, 4, 5): 4.303 · 1 / √3."""
    rows = gain_rows(values, False, "data.limit")
    assert rows[0] == ["training images", "1,000", "50,000"]
    assert rows[1] == ["baseline, %", *2 * ["71.00 ± 1.00 [71.00] (3)"]]
    assert rows[2][1].endswith(" [-1.00] (3); fell back: 1")  # the median shows what one run does to the mean of -7
    assert rows[3] == ["NST", "+4.00 ± 2.48 [+4.00] (3)", "-1.00 ± 0.00 [-1.00] (3)"]
    assert rows[4][2] == "–"


def test_what_nst_adds_is_the_sum_less_the_sum_without_it(values: dict[float, list[Method]]) -> None:
    rows = nst_rows(values, False, "data.limit")
    assert [row[0] for row in rows[1:]] == ["NST − Baseline", "KD + NST − KD"]
    assert rows[0][-1] == "mean"
    assert rows[1][1:] == ["+4.00 ± 2.48 [+4.00] (3)", "-1.00 ± 0.00 [-1.00] (3)", "+1.50 ± 1.24 [+1.50] (3)"]
    assert rows[2][1:] == ["+2.67 ± 1.43 [+3.00] (3)", "–", "–"]
    other = Method("KD + NST", {"kd": 1.0, "nst_poly": 50.0}, BASE)  # KD of another weight is no part of it
    assert [line.label for line in nst_gains({1000: [*values[1000][:3], other]}, False)] == ["NST − Baseline"]
    hotter = Method("KD, temperature 8", {"kd": 16.0}, BASE)  # which of the two it is in the sum is not known
    assert [line.label for line in nst_gains({1000: [*values[1000], hotter]}, False)] == ["NST − Baseline"]


def test_fewer_errors_are_a_gain(values: dict[float, list[Method]]) -> None:
    line = gains(values, True)[1]
    assert (line.points[1000].mean, line.points[1000].median) == (-4.0, -4.0)
    assert nst_rows(values, True, "data.limit")[1][-1] == "-1.50 ± 1.24 [-1.50] (3)"


def test_the_mean_of_the_gains_is_over_the_seeds_that_have_all_values(values: dict[float, list[Method]]) -> None:
    values[50000][2] = Method("NST", {"nst_poly": 50.0}, {0: 69.0, 2: 71.0})
    assert nst_rows(values, False, "data.limit")[1][-1] == "+1.50 ± 6.35 [+1.50] (2)"


def test_the_figure_holds_every_mean_and_cuts_wide_intervals(values: dict[float, list[Method]]) -> None:
    lines = gains(values, False)
    low, high = extent(lines)
    assert low < -7.0 < 4.0 < high < 10.0
    figure = gain_figure(lines, "data.limit")
    assert figure is not None
    assert [series.solid for series in figure.series] == [False, True, True]
    for series in figure.series:
        for x, upper, lower in series.whiskers:
            assert figure.left < x < figure.right
            assert 0 < upper <= lower <= figure.bottom
    kd, nst, _ = figure.series
    assert kd.dots[0][1] > figure.zero > nst.dots[0][1]
    assert gain_figure([], "data.limit") is None


def test_names_do_not_lie_on_each_other() -> None:
    found = spread_out([100.0, 101.0, 102.0, HEIGHT - 1.0, HEIGHT])
    assert all(b - a >= LABEL for a, b in zip(sorted(found), sorted(found)[1:], strict=False))
    assert found[0] == 100.0


def test_the_file_is_an_svg_of_its_own(values: dict[float, list[Method]]) -> None:
    values[1000][1] = method("KD <b>", {"kd": 16.0}, (0.0, 0.0, 0.0))
    figure = gain_figure(gains(values, False), "data.limit")
    assert figure is not None
    text = gain_file(figure)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "KD <b>" in [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "<script" not in text


def test_a_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two sizes of the digits, from the caches of each size's own views."""
    monkeypatch.chdir(tmp_path)
    Path("sizes.yaml").write_text(SMALL)
    request = Request("sizes.yaml", overrides=OVERRIDES)
    plan = make_plan(request, CONFIGS)
    assert plan.along == {"40": 40, "20": 20}
    assert [store.data["limit"] for store in plan.caches] == [40, 20]
    assert not any("knowledge" in change for cell in plan.cells for change in cell.changes)  # the baseline is live
    reproduce(request)
    folder = plan.folder
    result = json.loads((folder / "table.json").read_text())
    assert (result["along"], [group["at"] for group in result["groups"]]) == ("data.limit", [40, 20])
    seeds = [[row["by_seed"] for row in group["rows"]] for group in reversed(result["groups"])]
    rest = sum(at_nst[s] - at[s] for _, at, _, at_nst in seeds[:1] for s in at) / 2
    text = (folder / "table.md").read_text()
    assert "| training images | 20 | 40 |" in text
    assert f"| AT + NST − AT | {rest:+.2f} ± " in text
    page = (folder / "page.html").read_text()
    assert page.index("Gain over the baseline, by training images") < page.index("40 images</h2>")
    assert page.count('class="plot wide"') == 1
    assert CELL in page
    assert "What NST adds" in page
    plan_file = folder / "plan.json"
    whole = plan_file.read_text()
    for damage in ("0", "Infinity", "NaN", "40"):
        plan_file.write_text(re.sub(r'"at": 20', f'"at": {damage}', whole))
        with pytest.raises(
            ValueError, match=r"plan.json is damaged: the groups are at \[40, .*different positive numbers"
        ):
            read_table(folder, Path("outputs"))


@pytest.mark.parametrize(
    ("old", "new", "overrides", "message"),
    [
        ("along: data.limit", "along: data.limt", (), r"along: data.limt: runs have no such setting; did you mean data.limit"),
        ("along: data.limit", "along: data.name", (), r"it is 'digits' in group 40; a number above 0 is needed"),
        ("data.limit=20, ", "", (), r"data.limit: it is null in group 20; a number above 0 is needed"),
        ("data.limit=20", "data.limit=40", (), r"it is 40 in groups 40 and 20; each needs a value of its own"),
        ("[loss=at]", "[loss=at, data.limit=30]", (), r"it is 40 and 30 in group 40; all rows of a group need the same"),
        ("label: AT,", "label: Baseline,", (), r"two have the label .Baseline."),
        ("seeds: 2", "seeds: 1", ("data.limit=30",), r"it is 30 in groups 40 and 20; .*an override cannot set it"),
        ('  - {name: "20", title: 20 images, overrides: [data.limit=20, trainer.epochs=2]}\n', "", (), "there is one group"),
    ],
)  # fmt: skip
def test_what_is_no_axis_is_named(tmp_path: Path, old: str, new: str, overrides: tuple[str, ...], message: str) -> None:
    assert old in SMALL
    two_methods = SMALL.split("  - {name: nst")[0]
    (tmp_path / "sizes.yaml").write_text(two_methods.replace(old, new))
    with pytest.raises(ValueError, match=message):
        make_plan(Request(str(tmp_path / "sizes.yaml"), overrides=overrides), CONFIGS)


def test_a_rate_is_an_axis_too() -> None:
    rows = [("a", {"optim.lr": 0.1}), ("a", {"optim.lr": 0.1}), ("b", {"optim.lr": 0.4})]
    assert axis_values("optim.lr", "rates", rows) == {"a": 0.1, "b": 0.4}


def test_the_sizes_of_the_study_have_equally_many_steps() -> None:
    table = read_file("study/images", CONFIGS)
    steps = []
    for group in table.groups:
        words = dict(word.split("=", 1) for word in group.rows[0].run)
        images, epochs = int(words["data.limit"]), int(words["trainer.epochs"])
        steps.append(Schedule(images, 128, True, 0, 0, 1, 162, 0).steps * epochs)
        assert images * epochs == 200_000
        assert epochs / int(words["trainer.eval_every"]) == (8 if images == 5000 else 4)
        assert int(words["cache.views"]) == min(epochs, 40)
    assert steps == [1600, 1600, 1600, 1580, 1568, 1564]
