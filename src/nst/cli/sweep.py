"""A sweep: records the result of each job, goes on after a failed one, and prints a table at its end."""

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
    """Hydra's callback. Does nothing in a single run.

    Each job, in whichever process it runs, adds a line to `<outputs>/sweeps/<start of the sweep>.jsonl`; a launcher carries this
    object, and with it the file's name, to its workers.
    """

    file: Path | None = None  # set where a sweep starts

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the file of this sweep."""
        started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        self.file = Path(config.hydra.sweep.dir).absolute() / "sweeps" / f"{started}.jsonl"

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record the result of a job. A failed one returns nothing to the sweeper, and the sweep continues."""
        if self.file is None:
            return
        main = os.environ.get("RANK", "0") == "0"
        job: dict[str, Any] = {"job": config.hydra.job.num, "overrides": list(config.hydra.overrides.task)}
        error = job_return._return_value if job_return.status == JobStatus.FAILED else None
        if error is None:
            job |= _result(job_return)
        elif isinstance(error, Interrupted):
            job["state"] = "interrupted"
        else:
            job |= {"state": "failed", "message": explain(error) if isinstance(error, USER_ERRORS) else repr(error)}
            if not isinstance(error, USER_ERRORS):
                traceback.print_exception(error)
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        if main:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:  # one write of one line: jobs of a machine may end at the same time
                file.write(json.dumps(job) + "\n")
        if isinstance(error, Interrupted):  # a signal to the whole sweep
            if main:
                print(error)
            raise SystemExit(error.status)
        if error is not None and os.environ.get("WORLD_SIZE", "1") != "1":  # the ranks may be out of step
            from nst.dist import should_report_error

            if should_report_error():
                print(f"job {job['job']} failed: {job['message']}\nwith several ranks this ends the sweep")
            raise SystemExit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; the process ends with status 1 if a job failed. A dry run leaves nothing behind."""
        if self.file is None or not self.file.is_file():
            return
        jobs = read_sweep(self.file)
        if os.environ.get("RANK", "0") == "0":
            show(jobs)
            if all(job["state"] == "dry run" for job in jobs):
                self.file.unlink()
            else:
                print(f"all runs so far: nst runs outputs={quote(str(config.hydra.sweep.dir))}")
        if any(job["state"] == "failed" for job in jobs):
            raise SystemExit(1)


def _result(job: JobReturn) -> dict[str, Any]:
    """Of a successful job: its run folder and its accuracy."""
    from nst import build  # late: these import torch, which the job has done by now
    from nst.storage.folder import run_folder

    if job.return_value is None:  # no training
        return {"state": "done"}
    assert job.cfg is not None
    run = build.settings(job.cfg)
    if run.dry_run:
        return {"state": "dry run"}
    return {"state": "finished", "folder": str(run_folder(asdict(run))), "accuracy": 100 - job.return_value}


def read_sweep(file: Path) -> list[dict[str, Any]]:
    """The jobs of a sweep by number; each with `job`, `overrides`, `state` and `accuracy` or `message`."""
    return sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda job: job["job"])


def show(jobs: list[dict[str, Any]]) -> None:
    """Print a sweep's table, best accuracy first, with what differs between the jobs; below it each error once, with its jobs."""
    lists = [job["overrides"] for job in jobs]
    common = set(lists[0]).intersection(*lists) if len(jobs) > 1 else set()
    table = Table("job", "overrides", "state", "accuracy, last epoch", title="jobs of the sweep, best first")
    failed: dict[str, list[str]] = {}
    for job in sorted(jobs, key=lambda job: -job.get("accuracy", -1)):
        accuracy = f"{job['accuracy']:.2f} %" if "accuracy" in job else ""
        own = " ".join(override for override in job["overrides"] if override not in common)
        table.add_row(str(job["job"]), Text(own), job["state"], accuracy)
        if job["state"] == "failed":
            failed.setdefault(job["message"], []).append(str(job["job"]))
    console = Console()
    console.print(table)
    for message, numbers in failed.items():
        console.print(Text(f"job{'s' * (len(numbers) > 1)} {', '.join(numbers)} failed: {message}"))
