"""What a forked process does: a command line of `train.py`, after a fault was set. Imported once by the fork server, with all that a run needs."""

import os
import signal
import sys
import traceback
from typing import Any

import sklearn.datasets  # noqa: F401  (the digits)
import torch
import torch._inductor.compile_fx  # long to import
import torch.distributed
from omegaconf import DictConfig
from tests.faults import injections

import nst.run  # noqa: F401
from nst.cli.compose import readable_errors
from nst.cli.train import run


def main(cfg: DictConfig, folder: str, output: str, environment: dict[str, str], fault: tuple[Any, ...]) -> None:
    """Ends the process with the status of the command.

    Args:
        folder: the working folder.
        output: the file in it to which all is appended that the command prints.
        fault: a function of `injections` and its arguments, or ().
    """
    # another test may have started the fork server, with the signals blocked that data workers do not take
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    torch.set_num_threads(1)
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ |= environment
    status: Any = 1
    try:
        if fault:
            getattr(injections, fault[0])(*fault[1:])
        with readable_errors() as end:
            end.status = 1
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
