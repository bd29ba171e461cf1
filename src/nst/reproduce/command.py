"""`nst reproduce`, from request to page."""

from pathlib import Path

import torch
from filelock import FileLock
from rich.console import Console

from nst.config import CONFIGS
from nst.dist import join
from nst.report.table import read_table
from nst.report.write import print_result, write_result
from nst.reproduce import estimate
from nst.reproduce.evidence import gather, missing_layers
from nst.reproduce.execute import Outcome, check_teachers, execute
from nst.reproduce.plan import Plan, make_plan, write_plan
from nst.reproduce.request import Request


def reproduce(request: Request) -> None:
    """Plan a table, estimate its time, run what is missing, evaluate the networks, write and print the result.

    Raises:
        ValueError: an unknown table, settings that no run can have, or teacher weights that do not fit.
        Interrupted: stopped by a signal, saved; the same request continues.
    """
    plan = make_plan(request, CONFIGS)
    if not request.page:
        check_teachers(plan)
    with join(plan.cells[0].runs[0].trainer.device) as here:
        if here.main and not request.page:
            for line in missing_layers(plan):
                print(line)
            print("measuring a training step of each row that is not finished", flush=True)
            estimate.show(plan, estimate.estimate(plan, here.device), plan.folder)
        if request.plan:
            return
        outcome = Outcome() if request.page else execute(plan, here)
        if not here.main:
            return
        if outcome.elsewhere:
            print(f"not finished, run by other processes: {'; '.join(outcome.elsewhere)}")
            print("the last process writes the page; page=true writes one of the finished runs")
        else:
            _write(plan, here.device)
    for reason in outcome.failed.values():
        print(f"failed: {reason}")


def _write(plan: Plan, device: torch.device) -> None:
    """One process at a time, so that each sees all runs finished before."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(plan.folder / "lock"):
        write_plan(plan)
        gather(plan, device)
        result = read_table(plan.folder, Path(plan.request.outputs))
        write_result(result, plan.folder, Path(plan.request.outputs))
    print_result(result)
    Console().print(
        f"written: {plan.folder}/page.html, table.md, table.csv, table.json", highlight=False, soft_wrap=True
    )
