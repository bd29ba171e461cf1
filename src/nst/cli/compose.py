"""Commands on Hydra: parses the command line, and adds the working directory to the search paths."""

import re
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from nst.cli.errors import known_keys, nearest_keys, readable_errors, required
from nst.cli.search import add_working_directory, check_recipes, search_path
from nst.config import CONFIGS

# Hydra's own options, and how many values follow each.
OPTIONS = {
    **dict.fromkeys(("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"), 0),
    **dict.fromkeys(("--shell-completion", "-sc"), 0),
    **dict.fromkeys(("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"), 1),
    **dict.fromkeys(("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"), 1),
}

PLAIN_LISTS = ("allow", "formats")  # keys that take a single value without brackets, too
LISTS = ("loss", "tracker")  # the groups of which several may be chosen


def hydra_main(task: Callable[[DictConfig], Any], config_name: str, arguments: Sequence[str]) -> None:
    """Compose a configuration from the arguments and call `task` with it; user errors are one readable message."""

    @wraps(task)
    def complete(cfg: DictConfig) -> Any:
        with readable_errors(config_name):
            chosen = HydraConfig.get().overrides
            check_recipes([*chosen.hydra, *chosen.task])
            check_complete(cfg)
        return task(cfg)

    with readable_errors(config_name):
        sys.argv[1:] = with_own_folder(tidy(arguments, config_name))
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(complete)()


def check_complete(cfg: DictConfig) -> None:
    """Raises ValueError that names all missing required keys."""
    if missing := _missing(OmegaConf.to_container(cfg), ""):
        raise ValueError(required(missing))


def _missing(node: Any, prefix: str) -> list[str]:
    """Keys whose value is `???`; OmegaConf's own search stops at the first interpolation of such a key."""
    if node == MISSING:
        return [prefix.removesuffix(".")]
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [key for name, value in inner for key in _missing(value, f"{prefix}{name}.")]


def tidy(arguments: Sequence[str], config_name: str = "config") -> list[str]:
    """Arguments in Hydra's form: options first, `~` expanded, lists with spaces joined.

    Raises:
        ValueError: an argument that is neither an option nor `key=value`, or brackets that do not match.
    """
    options: list[str] = []
    overrides: list[str] = []
    value_of_option = False
    arguments = joined(arguments)
    for i, argument in enumerate(arguments):
        option = argument.startswith("-") and not re.match(r"-\d", argument)
        if value_of_option:
            value_of_option = False
            options.append(argument)
        elif option:
            name, equals, _ = argument.partition("=")
            if name not in OPTIONS:
                raise ValueError(_no_option(argument, [*arguments, ""][i + 1], config_name))
            value_of_option = OPTIONS[name] == 1 and not equals
            options.append(argument)
        elif i and arguments[i - 1] in ("--shell-completion", "-sc"):
            overrides.append(argument)  # the completion query, in Hydra's own syntax
        else:
            overrides.append(_tidy_override(argument))
    if value_of_option:
        raise ValueError(f"{options[-1]} needs a value, for example {options[-1]} FOLDER")
    return [*options, *overrides]


def joined(arguments: Sequence[str]) -> list[str]:
    """Join lists that were typed with spaces and without quotes, and so arrived as several arguments.

    Raises:
        ValueError: brackets that do not match.
    """
    result: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        while (open_brackets := _open_brackets(argument)) > 0 and remaining:
            argument += remaining.pop(0)
        if open_brackets:
            wrong = "is not closed" if open_brackets > 0 else "was not opened"
            raise ValueError(
                f"{argument}: a bracket {wrong}; lists are written key=[one,other], in quotes where they hold spaces"
            )
        result.append(argument)
    return result


def _open_brackets(argument: str) -> int:
    """Number of brackets of a `key=value` that are not closed (negative: not opened); text in quotes has none."""
    _, _, value = argument.partition("=")
    if argument.startswith("-") or "'" in value or '"' in value or "\\" in value:
        return 0
    return sum(value.count(a) - value.count(b) for a, b in ("[]", "{}", "()"))


def _tidy_override(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not key.strip("+~ ") or not (equals or key.startswith("~")):
        raise ValueError(
            f"{argument!r}: settings are written key=value, for example model=resnet20 or trainer.epochs=30"
        )
    if (CONFIGS / key).is_dir() and (value == "null" or value.startswith("[")) and key not in LISTS:
        if argument == "teacher=null":
            return "teacher=none"
        raise ValueError(f"{argument}: one choice is needed, {key}=NAME (nst train --help lists them)")
    if key in PLAIN_LISTS and value not in ("", "null") and not value.startswith("["):
        value = f"[{value}]"
    if value.startswith("~"):
        value = str(Path(value).expanduser())
    if re.fullmatch(r"\[[\w\s,./]*\]", value):
        value = re.sub(r"\s+", "", value)
    if re.search(r"[^\x20-\x7e]|[#!&;<>^`]", value) and not re.search(r"['\"\[\]{}(),$\\]", value):
        value = f"'{value}'"  # else Hydra takes ASCII only
    return key + equals + value


def _no_option(argument: str, following: str, config_name: str) -> str:
    name, _, value = argument.lstrip("-").partition("=")
    name = name.replace("-", "_")
    if not value and following and "=" not in following and not following.startswith("-"):
        value = following
    nearest = nearest_keys(name, list(known_keys(config_name)))
    example = f", for example {nearest[0]}={value or '…'}" if nearest else ""
    return f"{argument}: no such option; settings are written key=value{example}"


def with_own_folder(arguments: Sequence[str]) -> list[str]:
    """Arguments with `./configs`, the working directory and any `--config-dir` on Hydra's search path; the directory is put on Python's, too."""
    add_working_directory()
    if any(argument.startswith("hydra.searchpath") for argument in arguments) or {"--shell-completion", "-sc"} & set(
        arguments
    ):
        return list(arguments)
    others, folders = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            folders.append(Path(value if equals else next(remaining, "")).expanduser())
        else:
            others.append(argument)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--config-dir {folder}: no such folder")
    return [*others, *search_path(folders)]
