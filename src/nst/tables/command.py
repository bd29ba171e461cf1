"""`nst reproduce`, from request to page."""

from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.table import Table as Grid

from nst.dist import join
from nst.files import write_whole
from nst.report.page import page
from nst.report.text import as_csv, as_json, as_markdown, print_result
from nst.tables.evidence import gather, missing_layers
from nst.tables.execute import Outcome, check_teachers, execute
from nst.tables.frame import read_frame
from nst.tables.plan import Plan, Request, finished, folder_of, make_plan
from nst.tables.result import read_result
from nst.tables.statistics import sample


def reproduce(request: Request) -> None:
    """Plan a table, run what is missing, evaluate the networks, write and print the result.

    Raises:
        ValueError: an unknown table, settings that no run can have, or teacher weights that do not fit.
        Interrupted: stopped by a signal, saved; the same request continues.
    """
    plan = make_plan(request)
    if not request.page:
        check_teachers(plan)
    with join(plan.cells[0].runs[0].trainer.device) as here:
        if here.main and not request.page:
            for line in missing_layers(plan):
                print(line)
            show(plan)
        if request.plan:
            return
        outcome = Outcome() if request.page else execute(plan, here)
        if not here.main:
            return
        if outcome.elsewhere:
            print(f"not finished, run by other processes: {'; '.join(outcome.elsewhere)}")
            print("the last process writes the page; page=true writes one of the finished runs")
        else:
            folder = request.folder
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):  # one process at a time, so that each sees all runs finished before
                gather(plan, here.device)
                result = read_result(plan)
                for name, text in (("json", as_json(result)), ("csv", as_csv(result)), ("md", as_markdown(result))):
                    write_whole(folder / f"table.{name}", text.encode())
                write_whole(folder / "page.html", page(result, folder).encode())
            print_result(result)
            print(f"written: {folder}/page.html, table.md, table.csv, table.json")
    for reason in outcome.failed.values():
        print(f"failed: {reason}")


def show(plan: Plan) -> None:
    """Print what is finished, with its measured time, and what is missing."""
    lines = [(f"teacher {run.model['name']}", [run]) for run in plan.teachers]
    several = len(plan.table.groups) > 1
    lines += [
        (f"{cell.group.title}: {cell.row.label}" if several else cell.row.label, [*cell.runs]) for cell in plan.cells
    ]
    missing = sum(not finished(run) for _, runs in lines for run in runs)
    grid = Grid(title=f"{plan.table.title}: {sum(len(runs) for _, runs in lines)} runs, {missing} to do")
    for column in ("run", "epochs", "runs", "finished", "measured, s a run"):
        grid.add_column(column, justify="left" if column == "run" else "right")
    for name, runs in lines:
        done = [run for run in runs if finished(run)]
        seconds = sample(read_frame(map(folder_of, done))["seconds"]) if done else None
        measured = f"{seconds.mean:.0f}" if seconds else ""
        grid.add_row(name, str(runs[0].trainer.epochs), str(len(runs)), str(len(done)), measured)
    console = Console()
    console.print(grid)
    changes = list(dict.fromkeys(change for cell in plan.cells for change in cell.changes))
    if changes:
        kind = "the table's settings, except for"
        if not all(cell.comparable for cell in plan.cells):
            kind = "REDUCED" if any(cell.reduced for cell in plan.cells) else "CHANGED"
            kind += ", not comparable with published figures:"
        few = "; ".join(changes[:8]) + (f"; and {len(changes) - 8} more" if len(changes) > 8 else "")
        console.print(f"{kind} {few}", highlight=False, markup=False)
    console.print(f"result: {Path(plan.request.folder)}", highlight=False, soft_wrap=True)
