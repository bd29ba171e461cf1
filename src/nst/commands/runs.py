"""List runs, finished or not, with their last and best accuracy."""

from collections.abc import Sequence
from pathlib import Path

from nst.errors import readable_errors

USAGE = """List runs, finished or not, with their last and best accuracy.

  nst runs [field=value ...] [sort=FIELD] [outputs=FOLDER]

  fields: data teacher model loss seed epochs state last best best_epoch seconds folder
  values: several separated by commas; * matches anything: 'loss=*nst*,kd' seed=0 state=finished
  sort:   last (default), best: highest first; other fields: lowest first"""

COLUMNS = ("state", "last", "best", "best_epoch", "seconds")


def main(words: Sequence[str]) -> None:
    """Print the table.

    Raises:
        SystemExit: a word at fault, said in words.
    """
    with readable_errors():
        wrong = [word for word in words if "=" not in word]
        if wrong:
            raise ValueError(f"{wrong[0]!r}: field=value is needed\n\n{USAGE}")
        show(dict(word.split("=", 1) for word in words))


def show(asked: dict[str, str]) -> None:
    """Print the runs that have the fields asked for.

    Raises:
        ValueError: no such folder or field.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nst.report.runs import all_runs, select

    outputs, sort = Path(asked.pop("outputs", "outputs")).expanduser(), asked.pop("sort", "last")
    if not outputs.is_dir():
        raise ValueError(f"outputs={outputs}: there is no such folder; name the one that runs were written to")
    runs = select(all_runs(outputs), asked, sort)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(title=f"{len(runs)} runs in {outputs}, by {sort}; accuracies: top-1 in %")
    table.add_column("run", overflow="fold")
    for name in COLUMNS:
        table.add_column(name.replace("_", " "), justify="left" if name == "state" else "right", no_wrap=True)
    for run in runs:
        table.add_row(Text(run["folder"]), *(Text(_shown(run[name])) for name in COLUMNS))
    console.print(table)


def _shown(value: object) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
