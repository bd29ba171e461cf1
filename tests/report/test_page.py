"""From runs to numbers, text, files and the page, whose every value from a file stays text."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.tables.written import change, runs_of, write_evidence, write_table

from nst.report.page import evaluation_page, page
from nst.report.text import code, content, files, plain
from nst.tables.result import read_result

PAYLOAD = """</style><script>alert(1)</script><img src=x onerror='alert(2)'>{{ 7*7 }}{% x %}&lt;|`$x$"""


class Structure(HTMLParser):
    """The tags of a page with their attributes' names, and what a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_numbers_are_the_same_in_all_files(tmp_path: Path) -> None:
    result = read_result(write_table(tmp_path))
    student, kd, nst = result.groups[0][1]
    assert student.last is not None
    assert (student.last.mean, student.last.std) == pytest.approx((6.0, 1.0))  # errors 6, 5, 7
    assert nst.last is not None
    assert (nst.last.n, len(nst.cell.runs), nst.last.mean) == (2, 3, pytest.approx(4.45))
    assert [(method.rank, method.published_rank) for method in (student, kd, nst)] == [(3, 3), (2, 2), (1, 1)]
    shown = content(result)
    (group,), written = shown["groups"], files(result, shown)
    assert group["grid"][2] == [  # seed 2's best is epoch 1
        "KD", "-1.00 ± 0.00", "5.00 ± 1.00 (3)", "5.00", "kd 16 †", "2.52 … 7.48", "4.00 ± 1.00 (3)", "4.47 (unknown)",
        "+0.53 (last)", "2 (2)", "reproduced",
    ]  # fmt: skip
    assert "epochs 2; learning rate 0.05 (step)" in group["settings"]
    assert "| KD | -1.00 ± 0.00 | 5.00 ± 1.00 (3) | 5.00 | kd 16 † |" in written["table.md"]
    assert "Runs missing, by method: NST &lt;poly&gt; 1." in written["table.md"]
    (line,) = [row for row in csv.DictReader(written["table.csv"].splitlines()) if row["method"] == "kd"]
    assert (float(line["last_mean"]), float(line["published"])) == (pytest.approx(5), 4.47)
    (whole,) = json.loads(written["table.json"])["groups"]
    assert whole["rows"][1]["by_seed"] == pytest.approx({"0": 5.0, "1": 4.0, "2": 6.0})
    assert whole["teacher"]["figure"] == pytest.approx(4.0)


def test_accuracies_turn_the_comparison_round(tmp_path: Path) -> None:
    plan = write_table(tmp_path)
    plan.table.metric = "accuracy"
    result = read_result(plan)
    assert [method.rank for method in result.groups[0][1]] == [3, 2, 1]
    assert content(result)["groups"][0]["grid"][2][1] == "+1.00 ± 0.00"
    text = "+1.05 ± 5.72 points: no more than the variation between seeds explains, and about 4 of the 360 test images."
    assert text in page(result, tmp_path)


def test_reduced_is_stated_everywhere(tmp_path: Path) -> None:
    result = read_result(write_table(tmp_path, "data.limit=200"))
    written = files(result, content(result))
    assert all("not comparable: reduced" in text for text in written.values())
    for text in (written["table.md"], page(result, tmp_path)):
        assert "digits, test error (reduced)" in text
        assert "data.limit: 200 (table: null)" in text


def test_lost_runs_are_counted(tmp_path: Path) -> None:
    """From 90 % to 40 % where chance is 10 %: more than half of the lead. A diverged run has no accuracy."""
    plan = write_table(tmp_path)
    first, second, _ = runs_of(plan, "kd")
    (first / "summary.json").unlink()
    (first / "diverged.json").write_text('{"step": 3, "reason": "step 3: not finite"}')
    fell = "".join(
        json.dumps({"kind": "eval", "epoch": e, "top1": top1}) + "\n" for e, top1 in ((0.5, 90.0), (0.7, 40.0))
    )
    (second / "metrics.jsonl").write_text(fell + (second / "metrics.jsonl").read_text())
    row = (result := read_result(plan)).groups[0][1][1]
    assert (row.diverged, row.collapsed, row.last and row.last.n) == (1, 1, 2)
    assert "Runs that collapsed: 1; that diverged: 1." in " ".join(content(result)["notes"])


def test_a_figure_of_the_best_epoch_is_compared_with_the_best_epoch(tmp_path: Path) -> None:
    """Unless that was chosen on held-out images, and the published one on test images."""
    plan = write_table(tmp_path)
    plan.cells[1].row.epoch = "best"
    assert content(read_result(plan))["groups"][0]["grid"][2][7:9] == ["4.47 (best)", "-0.47 (best)"]
    for folder in runs_of(plan, "kd"):
        change(folder / "summary.json", "evaluated_on", "val")
    row = read_result(plan).groups[0][1][1]
    assert (row.difference, row.verdict) == (None, "not comparable: our best epoch is one on validation images")


def test_no_string_becomes_markup(tmp_path: Path) -> None:
    """The same tags with a payload in every text of the table and its runs as without, and no script, style or address of another."""
    found = []
    for name, text in (("harmless", "nst"), ("injected", PAYLOAD)):
        plan = write_table(tmp_path / name)
        plan.cells[2].row.label = plan.table.title = plan.table.source = plan.table.groups[0].title = text
        for file in (tmp_path / name).rglob("summary.json"):
            change(file, "commit", text)
            change(file, "versions", {text: text})
        write_evidence(plan.request.folder)
        run = runs_of(plan, "kd")[0]
        summary, report = json.loads((run / "summary.json").read_text()), evaluation(10)
        report["sha256"], report["data"]["sha256"] = summary["student"]["sha256"], summary["data"]["sha256"]
        (run / "evaluation.json").write_text(json.dumps(report))
        result, shown = read_result(plan), Structure()
        shown.feed(html := page(result, plan.request.folder))
        assert html.count("<svg") == 8  # results, three curves, MMD, two of t-SNE, a confusion matrix
        assert set(re.findall(r"#01[0-9a-f]{4}", html)) == set()  # every colour became a variable of the style
        assert not re.findall(r"https?://(?!www\.w3\.org/)|url\((?!#)", html)
        found.append((shown, files(result, content(result))["table.md"]))
    (harmless, _), (injected, markdown) = found
    assert injected.tags == harmless.tags
    assert PAYLOAD in injected.text
    assert not [tag for tag in injected.tags if tag[0] in ("script", "iframe") or "style" in tag[1:]]
    outside = re.sub(r"(?<!\\)(`+) ?.*?(?<!`)\1(?!`)", "", markdown)
    assert not re.search(r"<\s*[a-z/!]", outside, re.I)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def evaluation(classes: int) -> dict[str, Any]:
    """What `nst evaluate` writes, of a network that takes each class for itself or the next."""
    confusion = [[3 * (i == j) + (j == (i + 1) % classes) for j in range(classes)] for i in range(classes)]
    names = [f"{PAYLOAD} {i}" for i in range(classes)]
    found = [{"class": name, "images": 4, "top1": 75.0} for name in names]
    return {
        "model": "resnet8", "weights": "w", "images": 4 * classes, "top1": 75.0, "macro": 75.0,
        "data": {"name": "digits", "split": "test"}, "classes": found, "names": names, "confusion": confusion,
    }  # fmt: skip


def test_the_page_of_an_evaluation_draws_up_to_100_classes() -> None:
    shown = Structure()
    shown.feed(text := evaluation_page(evaluation(10)))
    assert sorted(re.findall(r">(\d+)</text>", text)) == 10 * ["25"] + 10 * ["75"]
    assert PAYLOAD in shown.text
    assert not [tag for tag in shown.tags if tag[0] in ("script", "img")]
    assert evaluation_page(evaluation(100)).count("<svg") == 1
    assert "<svg" not in evaluation_page(evaluation(101))


def test_markdown_is_neutralised() -> None:
    assert plain("a|b <b>\n[x](javascript:1) `c` *d* \\") == r"a\|b &lt;b&gt; \[x\](javascript:1) \`c\` \*d\* " + "\\\\"
    assert code("a`b") == "`` a`b ``"
    assert code("x | y") == r"`x \| y`"
