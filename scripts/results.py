"""Keep what was measured in results/, and write it into the pages.

python scripts/results.py add outputs/cifar10 results/cifar10.jsonl    # one line for each run that finished or diverged
python scripts/results.py pages                                        # README.md and docs/measured.md

Runs of several machines and days gather in one file: a run that is in it already stays as it is.
A page holds `<!-- results: FILE SPLIT [of METHODS] -->` and `<!-- end of results -->`; what lies between them is written from the runs of
results/FILE that were evaluated on that split ("test" or "val"), if given those of the baseline and of some methods, such as
`kd kd+nst_poly`. So it is between `<!-- gains: FILE SPLIT -->` and `<!-- end of gains -->`: the gain over the baseline by the number of
training images, and its figure in docs/images/. `<!-- published: FILE SPLIT of TABLE -->` to `<!-- end of published -->`: beside the
published figures of configs/table/TABLE.yaml.
"""

import json
import os
import re
import sys
from pathlib import Path

from nst.config import CONFIGS
from nst.report.along import gains
from nst.report.gain_figure import gain_figure
from nst.report.page import gain_file
from nst.reproduce.table import read_table
from result_tables import by_images, gain_section, published_section, section, terms
from run_lines import Record, add

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "measured.md")
IMAGES = ROOT / "docs" / "images"
SECTION = re.compile(
    r"(<!-- (?P<kind>results|gains|published): (?P<file>\S+) (?P<split>test|val)(?: of (?P<of>[\w+ /]+))? -->\n).*?(<!-- end of (?P=kind) -->)",
    re.S,
)


def chosen(found: re.Match[str]) -> list[Record]:
    """The runs that a page's comment names; none where their file is not there yet."""
    file = ROOT / "results" / found["file"]
    runs = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    methods = found["of"].split() if found["kind"] == "results" and found["of"] else None
    return [
        run
        for run in runs
        if run["evaluated_on"] == found["split"]
        and (not methods or not run["knowledge"] or "+".join(terms(run)) in methods)
    ]


def figure_of(found: re.Match[str]) -> Path:
    """The file of a section's figure."""
    return IMAGES / f"{Path(found['file']).stem}.svg"


def written(page: Path) -> str:
    """The page with its sections made anew; the README's tables are the short ones."""

    def anew(found: re.Match[str]) -> str:
        runs = chosen(found)
        if not runs:
            text = "Not measured yet."
        elif found["kind"] == "gains":
            text = gain_section(runs, os.path.relpath(figure_of(found), page.parent))
        elif found["kind"] == "published":
            text = published_section(runs, read_table(found["of"], CONFIGS))
        else:
            text = section(runs, short=page.name == "README.md")
        return f"{found[1]}{text}\n{found[6]}"

    return SECTION.sub(anew, page.read_text())


def drawn(page: Path) -> dict[Path, str]:
    """The figures of a page's sections, by file."""
    sections = [found for found in SECTION.finditer(page.read_text()) if found["kind"] == "gains" and chosen(found)]
    figures = {
        figure_of(found): gain_figure(gains(by_images(chosen(found)), False), "data.limit") for found in sections
    }
    return {file: gain_file(figure) for file, figure in figures.items() if figure is not None}


def main(words: list[str]) -> None:
    """Do what the words say."""
    match words:
        case ["add", folder, target]:
            add(Path(folder), Path(target))
        case ["pages"]:
            for page in PAGES:
                page.write_text(written(page))
                for file, figure in drawn(page).items():
                    file.write_text(figure)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
