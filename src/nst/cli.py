"""Entry points: a Hydra main whose errors are one readable message instead of a traceback."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nst.trainer.signals import Interrupted

# What a user can cause and mend; anything else is a fault of ours and keeps its traceback.
USER_ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError, FloatingPointError)


def run_main(main: Callable[[], object], config_name: str = "config") -> None:
    """Call a `@hydra.main` function; on a user's error print the message and exit with status 1.

    `HYDRA_FULL_ERROR=1` in the environment keeps the traceback.
    """
    full = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra hand the exception over instead of printing it
    try:
        main()
    except USER_ERRORS as error:
        if full:
            raise
        print(f"error: {explain(error, config_name)}\n(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
        sys.exit(1)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def explain(error: BaseException, config_name: str = "config") -> str:
    """The message of `error`, without Hydra's inner details and with the nearest names for a misspelt key."""
    text = str(error)
    cause = error.__cause__
    if isinstance(error, HydraException) and cause is not None and str(cause) not in text:
        text = f"{text}\n{cause}"
    lines = [line for line in text.splitlines() if not re.match(r"\s*(full_key|reference_type|object_type)\b", line)]
    lines = [line for line in lines if line.strip() and not line.startswith("To append to your config")]
    text = "\n".join(lines).split("\nConfig search path:")[0]
    if option := re.search(r"Could not find '([\w/]+)/([\w.-]+)'", text):
        names = [line.strip() for line in text.splitlines() if line.startswith("\t")]
        text += _nearest(option.group(2), names)
    elif key := re.search(r"Could not override '([^']+)'", text):
        text += _nearest(key.group(1), list(_known_keys(config_name)))
    return text


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"\nDid you mean {' or '.join(near)}?" if near else ""


def _known_keys(config_name: str) -> Iterator[str]:
    """Dotted names of all keys of the configuration, with the group choices of this command line where they compose."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    if not GlobalHydra.instance().is_initialized():
        return
    choices = [arg for arg in sys.argv[1:] if re.fullmatch(r"[\w/]+=[\w\[\],]+", arg)]
    for overrides in (choices, []):
        try:
            cfg = compose(config_name, overrides=overrides)
        except (HydraException, OmegaConfBaseException):
            continue
        yield from _keys(cfg, "")
        return


def _keys(node: DictConfig, prefix: str) -> Iterator[str]:
    for key, value in OmegaConf.to_container(node, resolve=False).items():  # type: ignore[union-attr]
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(OmegaConf.create(value), f"{prefix}{key}.")
