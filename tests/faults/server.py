"""Starts runs quickly: a process that has everything imported and forks one child for each requested run.

Lines of JSON in, lines of JSON out. `{"args", "env", "folder", "output", "fault"}` forks a child that does what
`python train.py <args>` does (the configuration is composed here, once for the same arguments), after the fault (a
function of `injections` and its arguments) was set; the answer is its process id. `{"wait", "seconds"}` waits for a child: its exit status, -signal, or null after killing a hanging one.
"""

import json
import os
import signal
import sys
import time
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401  (the digits)
import torch
import torch._inductor.compile_fx  # long to import
import torch.distributed
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tests.faults import injections

import nst.run  # noqa: F401  (all that a run imports, before it is forked)
from nst.cli.errors import readable_errors
from nst.cli.train import run

ROOT = Path(__file__).parents[2]


@cache
def composed(args: tuple[str, ...]) -> DictConfig:
    """The configuration of a command line."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("config", overrides=list(args))


def start(request: dict[str, Any]) -> int:
    """Fork a child for one run."""
    cfg = composed(tuple(request["args"]))
    pid = os.fork()
    if pid == 0:
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["folder"])
        os.environ |= request["env"]
        sys.argv = ["train.py", *request["args"]]
        status = 1
        try:
            if request["fault"]:
                name, *args = request["fault"]
                getattr(injections, name)(*args)
            with readable_errors():
                run(cfg)
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


def wait(pid: int, seconds: float) -> int | None:
    """The exit status of a child, -signal for one that was killed, None for one that had to be killed here."""
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main() -> None:
    """Serve until the input ends."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        answer = wait(request["wait"], request["seconds"]) if "wait" in request else start(request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
