"""Commands by Hydra: the words of the command line, and the folder of one's own as a place for configurations and code."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

from nst.config import CONFIGS
from nst.errors import known_keys, readable_errors
from nst.yaml_files import check_yaml

# Hydra's own options, and how many words follow each.
OPTIONS = {
    **dict.fromkeys(("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"), 0),
    **dict.fromkeys(("--shell-completion", "-sc"), 0),
    **dict.fromkeys(("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"), 1),
    **dict.fromkeys(("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"), 1),
}


class OwnConfigSource(FileConfigSource):
    """A folder of one's own: only the groups that the project has, so that `outputs/` and the like are none."""

    @staticmethod
    def scheme() -> str:
        """Of its paths: `own://FOLDER`."""
        return "own"

    def is_group(self, config_path: str) -> bool:
        """Whether a folder is one of the project's groups."""
        return _is_group(config_path) and super().is_group(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        """A configuration file, if it is harmless to read. Raises ValueError, naming it, where it is not."""
        file = Path(self.path) / self._normalize_file_name(config_path)
        if file.is_file():
            check_yaml(file)
        return super().load_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names in a group."""
        found = super().list(config_path, results_filter)
        return found if config_path else [name for name in found if _is_group(name)]


def _is_group(path: str) -> bool:
    first = path.strip("/").partition("/")[0]
    return not first or (CONFIGS / first).is_dir()


def hydra_main(task: Callable[[DictConfig], Any], config_name: str, words: Sequence[str]) -> None:
    """Compose a configuration from words and hand it to `task`; errors that a user can mend are one readable message."""
    SourcesRegistry.instance().register(OwnConfigSource)
    with readable_errors(config_name):
        sys.argv[1:] = with_own_folder(tidy(words, config_name))
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)()


def tidy(words: Sequence[str], config_name: str = "config") -> list[str]:
    """Words as Hydra wants them: `~` is the home folder, lists may have spaces.

    Raises:
        ValueError: a word that is neither an option nor `key=value`.
    """
    found: list[str] = []
    for word in words:
        if found and _open(found[-1]):  # a list with spaces, typed without quotes
            found[-1] += word
        else:
            found.append(word)
    value_of_option = False
    for i, word in enumerate(found):
        if value_of_option:
            value_of_option = False
        elif word.startswith("-") and not re.match(r"-\d", word):
            name, equals, _ = word.partition("=")
            if name not in OPTIONS:
                raise ValueError(_no_option(word, config_name))
            value_of_option = OPTIONS[name] == 1 and not equals
        else:
            key, equals, value = word.partition("=")
            if equals and value.startswith("~"):
                value = str(Path(value).expanduser())
            if re.fullmatch(r"\[[\w\s,./]*\]", value):
                value = re.sub(r"\s+", "", value)
            found[i] = key + equals + value
    return found


def _open(word: str) -> bool:
    """Whether a word has brackets that are not closed."""
    return "=" in word and any(word.count(a) > word.count(b) for a, b in ("[]", "{}", "()")) and "'" not in word


def _no_option(word: str, config_name: str) -> str:
    name, _, value = word.lstrip("-").partition("=")
    name = name.replace("-", "_")
    keys = list(known_keys(config_name))
    ends = [key for key in keys if key.split(".")[-1] == name] or difflib.get_close_matches(name, keys, n=1)
    example = f", for example {ends[0]}={value or '…'}" if ends else ""
    return f"{word}: no such option; settings are written key=value{example}"


def with_own_folder(words: Sequence[str]) -> list[str]:
    """Words with `./configs`, the working directory and any `--config-dir` on Hydra's search path, and the directory on Python's."""
    here = Path.cwd()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH", "")]))
    if str(here) not in sys.path:
        sys.path.insert(0, str(here))
    if any(word.startswith("hydra.searchpath") for word in words) or "--shell-completion" in words:
        return list(words)
    kept, folders = [], []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            folders.append(Path(value if equals else next(rest, "")).expanduser())
        else:
            kept.append(word)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--config-dir {folder}: no such folder")
    own = [folder.resolve() for folder in [*folders, here / "configs", here] if folder.is_dir()]
    own = [folder for folder in dict.fromkeys(own) if folder != CONFIGS.resolve() and _has_groups(folder)]
    return [*kept, f"hydra.searchpath=[{','.join(_quoted(f) for f in own)}]"] if own else kept


def _has_groups(folder: Path) -> bool:
    """Whether any of the project's groups has a configuration there."""
    return any((folder / group.name).is_dir() for group in CONFIGS.iterdir() if group.is_dir())


def _quoted(folder: Path) -> str:
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"'own://{escaped}'"
