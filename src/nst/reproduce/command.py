"""What `scripts/reproduce.py` does, from request to page."""

from pathlib import Path

from rich.console import Console

from nst.cli import CONFIGS
from nst.report.table import read_table
from nst.report.write import print_result, write_result
from nst.reproduce import estimate
from nst.reproduce.evidence import gather
from nst.reproduce.execute import Outcome, execute
from nst.reproduce.plan import make_plan, write_plan
from nst.reproduce.request import Request
from nst.trainer.distributed import ranks


def reproduce(request: Request) -> None:
    """Plan a table, estimate, run what is missing, look into the networks, write and print the result.

    Raises:
        ValueError: an unknown table, or settings that no run can have.
        Interrupted: stopped by a signal, saved; the same request continues.
    """
    plan = make_plan(request, CONFIGS)
    with ranks(plan.cells[0].runs[0].trainer.device) as here:
        if here.main and not request.page:
            estimate.show(plan, estimate.estimate(plan, here.device), plan.folder)
        if request.plan:
            return
        outcome = Outcome() if request.page else execute(plan, here)
        if not here.main:
            return
        if outcome.elsewhere:
            print(
                f"under way in other processes, of which the last to end completes the page: {'; '.join(outcome.elsewhere)}"
            )
        write_plan(plan)
        gather(plan, here.device)
    result = read_table(plan.folder, Path(request.outputs))
    write_result(result, plan.folder, Path(request.outputs))
    print_result(result)
    for name, reason in outcome.failed.items():
        print(f"failed: {name}: {reason}")
    Console().print(
        f"written: {plan.folder}/page.html, table.md, table.csv, table.json", highlight=False, soft_wrap=True
    )
