"""Keep what was measured in results/, and write it into the pages.

python scripts/results.py table outputs/tables/quick/cifar10/full results/quick_cifar10    # a table: .json, .csv and .runs.jsonl
python scripts/results.py search outputs/cifar10 results/search_cifar10.jsonl              # runs evaluated on a validation part
python scripts/results.py pages                                                            # README.md and docs/measured.md

A page holds `<!-- results: FILE -->` and `<!-- end of results -->`; what lies between them is written from results/FILE.
Files in results/ name no folder of the machine they were measured on: of a path only its last part is kept.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from nst.report.runs import read_events
from nst.report.text import as_table, label, markdown_row, teacher_text

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "measured.md")
SECTION = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.S)
FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+")

Record = dict[str, Any]


def keep_table(folder: Path, target: Path) -> None:
    """Copy a table's result, and one line for each of its runs."""
    text = FOLDERS.sub("", (folder / "table.json").read_text())
    target.with_suffix(".json").write_text(text)
    shutil.copyfile(folder / "table.csv", target.with_suffix(".csv"))
    outputs = next(parent.parent for parent in folder.parents if parent.name == "tables")
    rows = [row for group in json.loads(text)["groups"] for row in group["rows"]]
    keep_runs([outputs / run for row in rows for run in row["runs"]], target.with_suffix(".runs.jsonl"))


def keep_runs(folders: list[Path], target: Path) -> None:
    """One line for each finished run: what it was, and what came out."""
    lines = [json.dumps(one_run(folder)) for folder in folders if (folder / "summary.json").is_file()]
    target.write_text(FOLDERS.sub("", "\n".join(lines) + "\n"))


def one_run(folder: Path) -> Record:
    """Settings, accuracies by epoch, cost and origin of a finished run."""
    summary = json.loads((folder / "summary.json").read_text())
    config = summary["config"]
    return {
        "loss": {name: node["weight"] for name, node in config["loss"].items()},
        "seed": config["seed"],
        "data": {key: config["data"][key] for key in ("name", "limit", "validation")},
        "student": config["model"]["name"],
        "teacher": (summary["teacher"] or {}).get("name"),
        "knowledge": config["knowledge"] if summary["teacher"] else None,
        "optim": config["optim"],
        "epochs": config["trainer"]["epochs"],
        "precision": config["trainer"]["precision"],
        "test_top1": summary["test"]["top1"],
        "evaluated_on": summary["evaluated_on"],
        "top1_by_epoch": [row["top1"] for row in read_events(folder, "eval")],
        **{
            key: summary[key]
            for key in ("compiled", "steps", "skipped_steps", "seconds", "commit", "versions", "hardware")
        },
    }


def section(name: str) -> str:
    """What a page says of results/<name>."""
    text = (ROOT / "results" / name).read_text()
    return table_section(json.loads(text)) if name.endswith(".json") else search_section(text.splitlines())


def table_section(result: Record) -> str:
    """A table and where it comes from."""
    rows = [row for group in result["groups"] for row in group["rows"]]
    lines = [f"**{result['title']}**", ""]
    for group in result["groups"]:
        lines += [*as_table(group), ""]
        if group["teacher"]:
            lines += [f"{group['title']}; {teacher_text(group['teacher'])}.", ""]
    origin = [made(commit, machine) for row in rows for commit in row["commits"] for machine in row["hardware"]]
    lines += [f"{label(result)} Measured with {'; '.join(dict.fromkeys(origin))}.".strip(), ""]
    return "\n".join([*lines, f"`{result['command']}`"])


def search_section(lines: list[str]) -> str:
    """Validation accuracy by losses and learning rate."""
    runs = [json.loads(line) for line in lines]
    found: dict[tuple[str, ...], list[float]] = {}
    for run in runs:
        weights = ", ".join(f"{name} {weight:g}" for name, weight in run["loss"].items() if name != "ce")
        optim = (f"{run['optim']['lr']:g}", f"{run['optim']['weight_decay']:g}")
        key = (
            run["student"],
            weights or "student alone",
            *optim,
            f"{run['data']['limit'] or 'all'}",
            str(run["epochs"]),
        )
        found.setdefault(key, []).append(run["top1_by_epoch"][-1])
    table = [
        markdown_row(
            ["student", "loss weights", "learning rate", "weight decay", "images", "epochs", "validation top-1 (seeds)"]
        ),
        markdown_row(["---", "---", "---:", "---:", "---:", "---:", "---:"]),
    ]
    for key, values in sorted(found.items()):
        table.append(markdown_row([*key, f"{sum(values) / len(values):.2f} ({len(values)})"]))
    origin = dict.fromkeys(made(run["commit"], run["hardware"]) for run in runs)
    return "\n".join([*table, "", f"Measured with {'; '.join(origin)}."])


def made(commit: str, machine: Record) -> str:
    """Where a figure comes from, in words."""
    dirty = " with changes" if commit.endswith("+dirty") else ""
    return f"commit {commit[:7]}{dirty} on {machine['device']}, threads: {machine['threads']}"


def written(page: Path) -> str:
    """The page with its sections made anew."""
    return SECTION.sub(lambda found: f"{found[1]}{section(found[2])}\n{found[3]}", page.read_text())


def main(words: list[str]) -> None:
    """Do what the words say."""
    match words:
        case ["table", folder, target]:
            keep_table(Path(folder).resolve(), Path(target))
        case ["search", folder, target]:
            files = sorted(Path(folder).rglob("summary.json"))
            keep_runs([f.parent for f in files if json.loads(f.read_text())["evaluated_on"] == "val"], Path(target))
        case ["pages"]:
            for page in PAGES:
                page.write_text(written(page))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
