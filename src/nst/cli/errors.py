"""An error that the user can fix is one readable message, with the nearest key, instead of a traceback."""

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

from nst.config import CONFIGS, renamed
from nst.signals import Interrupted

# Errors that a user can cause and fix; anything else is a bug and shows its traceback.
USER_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, FloatingPointError)

# Hydra's plugin → NST's extra that installs it.
EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray", "optuna": "optuna"}
FULL = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"  # the user wants tracebacks
NO_SLURM = 'Could not detect "srun"'  # a RuntimeError of submitit


@contextmanager
def readable_errors(config_name: str = "config", status: int = 1) -> Iterator[None]:
    """End the process with a message and an exit status on a user's error, and quietly after a stop on request.

    With several ranks only the first to fail prints its error; the
    others end silently. `HYDRA_FULL_ERROR=1` in the environment keeps tracebacks. A job's errors in a sweep are left to `nst.cli.sweep`.

    Args:
        status: 2 where the arguments are read, before any work; 1 later.
    """
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        yield
        return
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        message = "stopped at once; the same command continues from the last checkpoint, if there is one"
        if os.environ.get("RANK", "0") == "0":
            print(stop if isinstance(stop, Interrupted) else message, file=sys.stderr)
        sys.exit(stop.status if isinstance(stop, Interrupted) else 130)
    except Exception as error:
        if "RANK" in os.environ:
            from nst.dist import should_report_error

            if not should_report_error():
                sys.exit(status)
        if FULL or not (isinstance(error, USER_ERRORS) or NO_SLURM in str(error)):
            raise
        print(f"error: {explain(error, config_name)}\n(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
        sys.exit(status)


def explain(error: BaseException, config_name: str = "config") -> str:
    """The message of `error`, without Hydra's internals and with the nearest names for a misspelt one."""
    text = str(error)
    if NO_SLURM in text:
        return "hydra/launcher=slurm: Slurm's srun is not on this machine; hydra/launcher=slurm_local tries the sweep without it"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return text
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text}\n{error.__cause__}"
    text = text.split("\nConfig search path:")[0]
    noise = ("full_key:", "reference_type", "object_type", "To append to your config")
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith(noise)]
    return with_nearest("\n".join(lines), config_name)


def with_nearest(message: str, config_name: str) -> str:
    """One of Hydra's messages about a missing value, an unknown choice or an unknown key, with what it could have been."""
    if match := re.search(r"(?i)missing mandatory value: (\S+)", message):
        return required([match[1]])
    if match := re.search(r"Could not (?:find|load) '([\w/]+)/([^']+)'", message):
        group, choice = match.groups()
        if choice in EXTRAS:
            return f"{message}\nIt comes with an extra: pip install 'nst[{EXTRAS[choice]}]'"
        folder = CONFIGS / group
        names = {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")}
        names |= set(
            re.findall(r"[\w/.-]+", message.partition(f"Available options in '{group}':")[2])
        )  # the user's own
        nearest = difflib.get_close_matches(choice, names, n=3, cutoff=0.5)
        more = "" if "Available options" in message else f"\nAvailable options in '{group}': {', '.join(sorted(names))}"
        return message + _did_you_mean(nearest) + (more if len(names) < 40 else "")
    if match := re.search(r"Could not override '([^']+)'", message):
        key = match[1].lstrip("+~")
        if now := renamed(key):
            return now
        known = list(known_keys(config_name))
        if nearest := nearest_keys(key, known):
            return message + _did_you_mean(nearest)
        first = [name for name in known if "." not in name]
        return f"{message}\nThere are {', '.join(first)}"
    return message


def _did_you_mean(nearest: Sequence[str]) -> str:
    return f"\nDid you mean {' or '.join(nearest)}?" if nearest else ""


def required(keys: Sequence[str]) -> str:
    """The message for required keys."""
    names, are = " and ".join(f"`{key}`" for key in keys), "is" if len(keys) == 1 else "are"
    return f"{names} {are} required: pass {' '.join(f'{key}=…' for key in keys)}"


def nearest_keys(name: str, keys: Sequence[str]) -> list[str]:
    """Suggestions for a misspelt key: keys that end in it, else similar ones, else keys with a similar end."""

    def ending_in(*ends: str) -> list[str]:  # the run's keys before a recipe's and a teacher's, short ones first
        matches = [key for key in keys if key.rpartition(".")[2] in ends]
        return sorted(matches, key=lambda key: (key.startswith(("recipe", "teacher.")), key.count(".")))[:3]

    if not name:
        return []
    similar = difflib.get_close_matches(name, keys, n=3, cutoff=0.6)
    ends = difflib.get_close_matches(name, {key.rpartition(".")[2] for key in keys}, n=1, cutoff=0.6)
    return [key for key in ending_in(name) or similar or ending_in(*ends) if key != name]


def known_keys(config_name: str) -> Iterator[str]:
    """Dotted names of all keys of the configuration, with the group choices of this command line where they compose."""
    choices = [arg for arg in sys.argv[1:] if (CONFIGS / arg.partition("=")[0].lstrip("+")).is_dir() and "=" in arg]
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
