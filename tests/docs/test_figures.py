"""The tables of cost that stand in the pages are those of the files in results/."""

import json
from typing import Any

import pytest
from tests.conftest import ROOT

NAMES = {
    "kd": "KD", "at": "AT", "fitnet": "FitNet", "review": "ReviewKD", "nst_linear": "NST linear", "nst": "NST poly",
    "nst_poly": "NST poly", "nst_gaussian": "NST Gaussian", "wkd_l": "WKD-L", "wkd_f": "WKD-F", "cat_kd": "CAT-KD",
    "sdd": "SDD of KD", "sdd dkd": "SDD of DKD", "ofa": "OFA-KD",
}  # fmt: skip
SHARES = "| {} | layers | share of the step | ms | extra memory | kept | why more than 5 % |"
SUMS = ("NST (poly) 50", "KD 16 + NST (poly) 50", "AT 1000 + NST (poly) 50")


def measured(file: str) -> Any:
    return json.loads((ROOT / "results" / file).read_text())


def table(page: str, header: str, heading: str = "") -> dict[str, list[str]]:
    """First cell → the other cells, of the first table with that header below the heading."""
    pages = [ROOT / "docs" / page, *(sorted((ROOT / "docs" / "tables").glob("*.md")) if page == "measured.md" else [])]
    text = "\n".join(page.read_text() for page in pages)
    lines = text[text.index(heading) :].split(header)[1].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize(
    ("file", "part", "header"),
    [
        ("losses_crd_methods.json", "steps", SHARES.format("loss")),
        ("losses_next.json", "steps", SHARES.format("newer loss")),
        ("losses_next.json", "memory", "| loss | measured |"),
    ],
)
def test_time_and_memory_of_each_loss(file: str, part: str, header: str) -> None:
    expected = {}
    for row in measured(file)[part]:
        memory, name = f"{row['extra_mb']:,.0f} MB", NAMES.get(row["loss"], row["loss"].upper())
        time = (
            [f"{100 * row['share_by_processor_time']:.1f} %", f"{row['processor_ms']:.1f}"] if part == "steps" else []
        )
        expected[name] = [*time, memory]
    cells = slice(1, 4) if part == "steps" else slice(0, 1)
    assert {name.split(",")[0]: found[cells] for name, found in table("cost.md", header).items()} == expected


def test_the_time_of_cached_steps() -> None:
    shown = table("cost.md", "| loss | live | live, processor time | cached | cached, processor time | loss alone |")
    expected: dict[str, list[str]] = {loss: [] for loss in shown}
    for row in measured("steps_crd.json")["rows"]:
        if row["knowledge"] in ("live", "stored"):
            expected[row["loss"]] += [f"{row['ratio_to_plain']:.2f}", f"{row['ratio_by_processor_time']:.2f}"]
            expected[row["loss"]] += [f"{row['loss_alone']:+.2f}"] * (row["knowledge"] == "stored")
    assert shown == expected


def test_speed_and_memory_beside_the_broadcast_form() -> None:
    """The figures that the README cites."""
    rows = {row["method"]: row for row in measured("losses_paper_cifar.json")["rows"] if row["allocator"] == "default"}
    for name in ("poly", "gaussian"):
        ratios = f"| {rows[name]['speedup']:.0f}× | {rows[name]['memory_reduction']:.0f}× |"
        assert ratios in (ROOT / "docs" / "cost.md").read_text()
    for name in ("poly", "poly-pairwise"):
        cost = f"{rows[name]['median_ms']:.0f} ms and {rows[name]['extra_mb']:.0f} MB"
        assert cost in (ROOT / "README.md").read_text()


def test_the_cosines_between_the_gradients_of_two_terms() -> None:
    shown = table("measured.md", "| | before training | after training |")
    runs = measured("gradients_cifar10_5000.json")
    names = {"AT": "at", "KD": "kd", "NST poly": "nst_poly", "cross-entropy": "ce"}
    assert set(shown) == {"AT and NST poly", "KD and NST poly", "KD and cross-entropy"}
    for title, cells in shown.items():
        term, other = (names[name] for name in title.split(" and "))
        for when, cell in zip(("before training", "after training"), cells, strict=True):
            rows = [row for run in runs for row in run["measured"][when] if row["term"] == term]
            cosines = [row["cosines"][other] for row in rows if other in row["cosines"]]
            assert cell == ", ".join(f"{cosine:.2f}".replace("-", "−") for cosine in cosines)


def gain(cell: str, sign: str = "") -> str:
    """A difference with one decimal, as prose has it: "+1.32 ± 0.82 [+1.29] (3)" → "1.3 ± 0.8"."""
    values = [float(word) for word in cell.split() if word.strip("+-").replace(".", "").isdecimal()]
    return " ± ".join(f"{value:{sign if i == 0 else ''}.1f}".replace("-", "−") for i, value in enumerate(values))


def test_the_gains_that_the_readme_cites() -> None:
    """Its figures are those of the page, which are written from the runs."""
    readme = " ".join((ROOT / "README.md").read_text().split())
    header = "| training images | 1,000 | 2,500 | 5,000 | 10,000 | 25,000 | 50,000 |"
    by_images = [f"{float(cell.split()[0]):.1f}" for cell in table("measured.md", header)["NST (poly) 50"]]
    assert f"gains {', '.join(by_images)} points" in readme
    added = table("measured.md", f"{header} mean |")
    assert list(added) == [f"{a} − {b}" for a, b in zip(SUMS, ("baseline", "KD 16", "AT 1000"), strict=True)]
    alone, beside_kd, beside_at = (gain(cells[-1]) for cells in added.values())
    assert f": {alone} on average. To KD it adds {beside_kd} on average, to AT, " in readme
    assert f"0.3 at the end), {beside_at}." in readme
    few = table("measured.md", "| what NST adds |", "\n# Does it help with a tenth of the images?")
    beside_kd, beside_at = (gain(few[f"{rest} + NST (poly) 50 − {rest}"][0]) for rest in ("KD 16", "AT 1000"))
    assert f"- NST (poly) adds {beside_kd} to KD here and {beside_at} to AT;" in readme
    rows = table("measured.md", "| method, λ |", "\n# Does it help with all images and more epochs?")
    kd, both, nst = (gain(rows[name][-2], "+") for name in ("KD 16", "KD 16 + NST (poly) 50", "NST (poly) 50"))
    assert f"KD {kd}, KD + NST {both}, NST {nst} (3 seeds)" in readme
    photographs = table("measured.md", "| method, λ |", "\n# Does it help on photographs?")
    assert f"KD + NST gains {gain(photographs['KD 16 + NST (poly) 50, cached, 15 views'][3])}, which is " in readme
