"""A sweep: records the state of each job, goes on after a failed one, and says at its end what became of them."""

import json
import os
import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from nst.cli.compose import USER_ERRORS, explain, readable_errors
from nst.signals import Interrupted


class Sweep(Callback):
    """Hydra's callback; idle in a single run. Each job, in whichever process, adds a line to `<outputs>/sweeps/<its start>.jsonl`: a
    launcher carries this object, and with it the file's name, to its workers.
    """

    file: Path | None = None  # set where a sweep starts

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the file of this sweep."""
        started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        self.file = Path(config.hydra.sweep.dir).absolute() / "sweeps" / f"{started}.jsonl"

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record the state of a job. A failed one returns nothing to the sweeper, and the sweep continues."""
        if self.file is None:
            return
        job = {"job": config.hydra.job.num, "overrides": list(config.hydra.overrides.task), "state": "finished"}
        error: Any = job_return._return_value if job_return.status == JobStatus.FAILED else None
        if isinstance(error, Interrupted):
            job["state"] = "interrupted"
        elif error is not None:
            job |= {"state": "failed", "message": explain(error) if isinstance(error, USER_ERRORS) else repr(error)}
            if not isinstance(error, USER_ERRORS):
                traceback.print_exception(error)
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        if os.environ.get("RANK", "0") == "0":
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:  # one write of one line: jobs of a machine may end at the same time
                file.write(json.dumps(job) + "\n")
        several = os.environ.get("WORLD_SIZE", "1") != "1"  # ranks, which may be out of step after an error
        if isinstance(error, Interrupted) or (error is not None and several):  # ends the sweep
            with suppress(Exception), readable_errors() as end:
                end.status = 1
                raise error
            raise SystemExit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print how many jobs finished, and each error once; the process ends with status 1 if a job failed."""
        if self.file is None or not self.file.is_file():
            return
        jobs = [json.loads(line) for line in self.file.read_text().splitlines()]
        failed: dict[str, list[int]] = {}
        for job in jobs:
            if job["state"] == "failed":
                failed.setdefault(job["message"], []).append(job["job"])
        for message, numbers in failed.items():
            print(f"job{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))} failed: {message}")
        finished = len(jobs) - sum(map(len, failed.values()))
        print(f"{finished} of {len(jobs)} jobs finished: nst runs outputs={quote(str(config.hydra.sweep.dir))}")
        if config.get("dry_run"):
            self.file.unlink()
        if failed:
            raise SystemExit(1)
