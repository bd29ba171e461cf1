"""An error that the user can fix is one readable message, with the nearest key, instead of a traceback."""

import difflib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
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


@dataclass
class Exit:
    """The status of a command that ends with an error: 2 while its arguments are read, 1 once the work has begun."""

    status: int = 2


@contextmanager
def readable_errors(config_name: str = "config", arguments: Sequence[str] = (), status: int = 2) -> Iterator[Exit]:
    """End the process with a message and an exit status on a user's error, and quietly after a stop on request.

    With several ranks only the first to fail prints its error. `HYDRA_FULL_ERROR=1` in the environment keeps tracebacks.

    Args:
        config_name, arguments: what is composed, for suggestions.
        status: of an error at the start of the block, which may change it.
    """
    end = Exit(status)
    try:
        yield end
    except (Interrupted, KeyboardInterrupt) as stop:
        message = "stopped at once; the same command continues from the last checkpoint, if there is one"
        if os.environ.get("RANK", "0") == "0":
            print(stop if isinstance(stop, Interrupted) else message, file=sys.stderr)
        sys.exit(stop.status if isinstance(stop, Interrupted) else 130)
    except Exception as error:
        if "RANK" in os.environ:
            from nst.dist import should_report_error

            if not should_report_error():
                sys.exit(end.status)
        if FULL or not (isinstance(error, USER_ERRORS) or NO_SLURM in str(error)):
            raise
        text = explain(error, config_name, arguments)
        print(f"error: {text}\n(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
        sys.exit(end.status)


def explain(error: BaseException, config_name: str = "config", arguments: Sequence[str] = ()) -> str:
    """The message of `error`; one of Hydra's without its internals and with what could have been meant."""
    text = str(error)
    if NO_SLURM in text:
        return "hydra/launcher=slurm: Slurm's srun is not on this machine; hydra/launcher=slurm_local tries the sweep without it"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return text
    if isinstance(error, OmegaConfBaseException) and error.full_key and error.full_key not in text.split("\n")[0]:
        text = f"{error.full_key}: {text}"
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text}\n{error.__cause__}"
    noise = ("full_key:", "reference_type", "object_type", "To append to your config")
    lines = text.split("\nConfig search path:")[0].splitlines()
    text = "\n".join(line for line in lines if line.strip() and not line.strip().startswith(noise))
    if match := re.search(r"(?i)missing mandatory value: (\S+)", text):
        key = match[1] if "interpolation" in text else getattr(error, "full_key", None) or match[1]
        return f"`{key}` is required: pass {key}=…"
    if match := re.search(r"Could not (?:find|load) '([\w/]+)/([^']+)'", text):
        group, choice = match.groups()
        if choice in EXTRAS:
            return f"{text}\nIt comes with an extra: pip install 'nst[{EXTRAS[choice]}]'"
        shipped = {file.relative_to(CONFIGS / group).with_suffix("") for file in (CONFIGS / group).rglob("*.yaml")}
        names = {*map(str, shipped), *re.findall(r"^\t(\S+)$", text, re.M)}  # the user's own, too
        nearest = difflib.get_close_matches(choice, names, n=3, cutoff=0.5)
    elif match := re.search(r"Could not override '[+~]*([^']+)'|Key '([^']+)' not in", text):
        key = match[1] or match[2]
        if now := renamed(key):
            return now
        known = known_keys(config_name, arguments)
        nearest = nearest_keys(key, known)
        text += "" if nearest else f"\nThere are {', '.join(name for name in known if '.' not in name)}"
    else:
        return text
    return f"{text}\nDid you mean {' or '.join(nearest)}?" if nearest else text


def nearest_keys(name: str, keys: Sequence[str]) -> list[str]:
    """Suggestions for a misspelt key: keys that end in it, else similar ones, else keys with a similar end."""

    def ending_in(*ends: str) -> list[str]:  # the run's keys before a recipe's and a teacher's, short ones first
        matches = [key for key in keys if key.rpartition(".")[2] in ends]
        return sorted(matches, key=lambda key: (key.startswith(("recipe", "teacher.")), key.count(".")))[:3]

    similar = difflib.get_close_matches(name, keys, n=3, cutoff=0.6)
    ends = difflib.get_close_matches(name, {key.rpartition(".")[2] for key in keys}, n=1, cutoff=0.6)
    return [key for key in ending_in(name) or similar or ending_in(*ends) if not f"{name}.".startswith(f"{key}.")]


def known_keys(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Dotted names of all keys of a configuration, with the choices of groups in `arguments` where they compose."""
    chosen = [arg for arg in arguments if "=" in arg and (CONFIGS / arg.partition("=")[0].lstrip("+")).is_dir()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for overrides in (chosen, []):
            with suppress(HydraException, OmegaConfBaseException, ValueError):
                return [*_keys(OmegaConf.to_container(compose(config_name, overrides)), "")]
    return []


def _keys(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
