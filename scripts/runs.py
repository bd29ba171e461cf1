"""List the runs of `outputs/`: `python scripts/runs.py data=digits 'loss=*nst*' sort=best`."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nst.errors import readable_errors
from nst.report.runs import all_runs, select

USAGE = """List runs, finished or not, with their last and best accuracy.

  python scripts/runs.py [field=value ...] [sort=FIELD] [outputs=FOLDER]

  fields: data teacher model loss seed epochs state last best best_epoch seconds folder
  values: several separated by commas; * matches anything: 'loss=*nst*,kd' seed=0 state=finished
  sort:   last (default), best: highest first; other fields: lowest first"""

COLUMNS = ("state", "last", "best", "best_epoch", "seconds")


def main(words: list[str]) -> None:
    """Print the table."""
    asked = dict(word.split("=", 1) for word in words if "=" in word)
    if any("=" not in word for word in words):
        print(USAGE)
        return
    outputs, sort = Path(asked.pop("outputs", "outputs")), asked.pop("sort", "last")
    if not outputs.is_dir():
        raise ValueError(f"outputs={outputs}: there is no such folder; name the one that runs were written to")
    runs = select(all_runs(outputs), asked, sort)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    grid = Table(title=f"{len(runs)} runs in {outputs}, by {sort}; accuracies: top-1 in %")
    grid.add_column("run", overflow="fold")
    for name in COLUMNS:
        grid.add_column(name.replace("_", " "), justify="left" if name == "state" else "right", no_wrap=True)
    for run in runs:
        grid.add_row(Text(run["folder"]), *(Text(shown(run[name])) for name in COLUMNS))
    console.print(grid)


def shown(value: object) -> str:
    """A field as text."""
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
