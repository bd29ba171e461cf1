"""A sweep: records the result of each job and goes on after a failed one."""

import json
import os
import traceback
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nst.cli.errors import USER_ERRORS, explain
from nst.signals import Interrupted


class Sweep(Callback):
    """Continues a sweep after a failed job, and prints a table of all jobs at its end.

    Each job, in whichever process it runs, adds a line to `<outputs>/sweeps/<start of the sweep>.jsonl`; a launcher
    carries this object, and with it the file's name, to its workers. Does nothing in a single run.
    """

    def __init__(self) -> None:
        """Whether it is a sweep is known when it starts."""
        self.file: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the file of this sweep."""
        started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        self.file = Path(config.hydra.sweep.dir).absolute() / "sweeps" / f"{started}.jsonl"

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record the result of a job. A failed one returns nothing to the sweeper, and the sweep continues."""
        if self.file is None:
            return
        line: dict[str, Any] = {"job": config.hydra.job.num, "overrides": list(config.hydra.overrides.task)}
        error = job_return._return_value if job_return.status == JobStatus.FAILED else None
        if error is None:
            line |= _outcome(job_return)
        elif isinstance(error, Interrupted):
            line |= {"state": "interrupted"}
        else:
            mendable = isinstance(error, USER_ERRORS)
            line |= {"state": "failed", "message": explain(error) if mendable else repr(error)}
            if not mendable:
                traceback.print_exception(error)
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        if _main_rank():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:  # one write of one line: jobs of a machine may end at the same time
                file.write(json.dumps(line) + "\n")
        if isinstance(error, Interrupted):  # a signal to the whole sweep
            if _main_rank():
                print(error)
            raise SystemExit(error.status)
        if error is not None and os.environ.get("WORLD_SIZE", "1") != "1":  # the ranks may be out of step
            from nst.dist import should_report_error

            if should_report_error():
                print(f"job {line['job']} failed: {line['message']}\nwith several ranks this ends the sweep")
            raise SystemExit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; the process ends with status 1 if a job failed. A dry run leaves nothing behind."""
        if self.file is None or not self.file.is_file():
            return
        lines = read_sweep(self.file)
        if _main_rank():
            show(lines)
            if all(line["state"] == "dry run" for line in lines):
                self.file.unlink()
            else:
                print(f"all runs so far: nst runs outputs={quote(str(config.hydra.sweep.dir))}")
        if any(line["state"] == "failed" for line in lines):
            raise SystemExit(1)


def _outcome(job: JobReturn) -> dict[str, Any]:
    """Of a successful job: its run folder, whether the run finished, and its accuracy."""
    from nst import build  # late: these import torch, which the job has done by now
    from nst.runs.folder import RunFolder, run_folder

    assert job.cfg is not None
    if job.return_value is None:  # no training
        return {"state": "done"}
    run = build.settings(job.cfg)
    if run.dry_run:
        return {"state": "dry run"}
    folder = RunFolder(run_folder(asdict(run)))
    return {"state": "finished", "folder": str(folder.path), "accuracy": 100 - job.return_value}


def _main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def read_sweep(file: Path) -> list[dict[str, Any]]:
    """The jobs of a sweep by number; each with `job`, `overrides`, `state` and `accuracy` or `message`."""
    return sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda line: line["job"])


def show(lines: list[dict[str, Any]]) -> None:
    """Print a sweep's table, best accuracy first, with what differs between the jobs; below it each error once, with its jobs."""
    lists = [line["overrides"] for line in lines]
    common = set(lists[0]).intersection(*lists) if len(lines) > 1 else set()
    table = Table(title=f"{len(lines)} job{'s' * (len(lines) > 1)}, best first")
    for column in ("job", "overrides", "state", "accuracy, last epoch"):
        table.add_column(column)
    for line in sorted(lines, key=lambda line: -line.get("accuracy", -1)):
        accuracy = f"{line['accuracy']:.2f} %" if "accuracy" in line else ""
        own = " ".join(override for override in line["overrides"] if override not in common)
        table.add_row(str(line["job"]), Text(own), line["state"], accuracy)
    console = Console()
    console.print(table)
    failed: dict[str, list[str]] = {}
    for line in lines:
        if line["state"] == "failed":
            failed.setdefault(line["message"], []).append(str(line["job"]))
    for message, jobs in failed.items():
        console.print(Text(f"job{'s' * (len(jobs) > 1)} {', '.join(jobs)} failed: {message}"))
