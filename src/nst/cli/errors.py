"""Entry points: an error that the user can fix is one readable message instead of a traceback."""

import difflib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nst.config import CONFIGS
from nst.signals import Interrupted

# Errors that a user can cause and fix; anything else is a bug and shows its traceback.
USER_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, FloatingPointError)

# Hydra's plugin → NST's extra that installs it.
EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray", "optuna": "optuna"}
INSTALL = "pip install 'nst[{}]'"
NO_SLURM = 'Could not detect "srun"'  # a RuntimeError of submitit

# Hydra raises its exceptions, instead of printing them, only with HYDRA_FULL_ERROR=1. So NST sets it; child processes must
# not take that for the user's setting.
OURS = "NST_SET_HYDRA_FULL_ERROR"
FULL = os.environ.get("HYDRA_FULL_ERROR", "0") == "1" and OURS not in os.environ  # tracebacks requested by the user
if not FULL:
    os.environ["HYDRA_FULL_ERROR"] = os.environ[OURS] = "1"


@contextmanager
def readable_errors(config_name: str = "config") -> Iterator[None]:
    """End the process with a message and status 1 on a user's error, 128 + signal after a stop on request.

    With several ranks only the first to fail prints its error; the others end silently.
    `HYDRA_FULL_ERROR=1` in the environment keeps tracebacks. A job's errors in a sweep are left to `nst.cli.sweep`.
    """
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        yield
        return
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        if os.environ.get("RANK", "0") == "0":
            message = "stopped at once; the same command continues from the last checkpoint, if there is one"
            print(stop if isinstance(stop, Interrupted) else message, file=sys.stderr)
        sys.exit(stop.status if isinstance(stop, Interrupted) else 130)
    except Exception as error:
        if not _should_report_error():
            sys.exit(1)
        if FULL or not (isinstance(error, USER_ERRORS) or NO_SLURM in str(error)):
            raise
        print(f"error: {explain(error, config_name)}\n(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
        sys.exit(1)


def _should_report_error() -> bool:
    if "RANK" not in os.environ:
        return True
    from nst.dist import should_report_error

    return should_report_error()


def explain(error: BaseException, config_name: str = "config") -> str:
    """The message of `error`, without Hydra's internals and with the nearest names for a misspelt one."""
    text = str(error)
    if NO_SLURM in text:
        return "hydra/launcher=slurm: Slurm's srun is not on this machine; hydra/launcher=slurm_local tries the sweep without it"
    if type(error) is ValueError:  # NST's own
        return text
    cause = error.__cause__
    if isinstance(error, HydraException) and cause is not None and str(cause) not in text:
        text = f"{text}\n{cause}"
    text = text.split("\nConfig search path:")[0]
    noise = r"\s*(full_key|reference_type|object_type)\b|To append to your config|\s*$"
    text = "\n".join(line for line in text.splitlines() if not re.match(noise, line))
    if key := re.search(r"(?i)missing mandatory value: (\S+)", text):
        full = re.search(r"full_key: (\S+)", str(error))
        return required([full[1] if full and full[1].endswith(key[1]) else key[1]])
    option = re.search(r"Could not (?:find|load) '([\w/]+)/([\w.-]+)'", text)
    if option and option[2] in EXTRAS:
        text += f"\nIt comes with an extra: {INSTALL.format(EXTRAS[option[2]])}"
    elif option:
        folder = CONFIGS / option[1]
        names = sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))
        listed = text.partition("Available options in '")[2].partition("':")[2]  # with those of the user's own folder
        known = {*names, *re.findall(r"[\w/.-]+", listed)}
        text += _did_you_mean(difflib.get_close_matches(option[2], known, n=3, cutoff=0.5))
        if "Available options" not in text and len(names) < 40:
            text += f"\nAvailable options in '{option[1]}': {', '.join(names)}"
    elif key := re.search(r"Could not override '([^']+)'", text):
        text += _did_you_mean(nearest_keys(key[1].lstrip("+~"), list(known_keys(config_name))))
    return text


def required(keys: Sequence[str]) -> str:
    """The message for required keys."""
    names, are = " and ".join(f"`{key}`" for key in keys), "is" if len(keys) == 1 else "are"
    return f"{names} {are} required: pass {' '.join(f'{key}=…' for key in keys)}"


def nearest_keys(name: str, keys: Sequence[str]) -> list[str]:
    """Suggestions for a misspelt key: keys that end in it, else similar ones, else keys with a similar end."""

    def ending_in(*ends: str) -> list[str]:  # the run's keys before a recipe's, short ones first
        matches = [key for key in keys if key.rpartition(".")[2] in ends]
        return sorted(matches, key=lambda key: ("recipe" in key, key.count(".")))[:3]

    if not name:
        return []
    similar = difflib.get_close_matches(name, keys, n=3, cutoff=0.6)
    ends = difflib.get_close_matches(name, {key.rpartition(".")[2] for key in keys}, n=1, cutoff=0.6)
    return (name not in keys and ending_in(name)) or similar or ending_in(*ends)


def _did_you_mean(nearest: Sequence[str]) -> str:
    return f"\nDid you mean {' or '.join(nearest)}?" if nearest else ""


def known_keys(config_name: str) -> Iterator[str]:
    """Dotted names of all keys of the configuration, with the group choices of this command line where they compose."""
    choices = [arg for arg in sys.argv[1:] if re.fullmatch(r"[\w/]+=[\w\[\],/]+", arg) and "." not in arg]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for overrides in (choices, []):
            try:
                cfg = compose(config_name, overrides=overrides)
            except (HydraException, OmegaConfBaseException):
                continue
            yield from _keys(OmegaConf.to_container(cfg), "")
            return


def _keys(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
