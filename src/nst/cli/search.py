"""Search path for the user's configurations, tables and Python files: `./configs` and the working directory."""

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

from nst.config import CONFIGS
from nst.yaml_files import check_yaml

USER_CONFIGS = "configs"  # folder of the working directory


class UserConfigSource(FileConfigSource):
    """A folder of the user: only folders named like the project's groups are groups, so `outputs/` is none."""

    @staticmethod
    def scheme() -> str:
        """The scheme of its paths: `own://FOLDER`."""
        return "own"

    def is_group(self, config_path: str) -> bool:
        """Whether a folder is one of the project's groups."""
        return _is_group(config_path) and super().is_group(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        """A configuration file, if it is safe to read; else raises ValueError with its name."""
        file = Path(self.path) / self._normalize_file_name(config_path)
        if file.is_file():
            check_yaml(file)
        return super().load_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names in a group."""
        names = super().list(config_path, results_filter)
        return names if config_path else [name for name in names if _is_group(name)]


def _is_group(path: str) -> bool:
    first = path.strip("/").partition("/")[0]
    return not first or (CONFIGS / first).is_dir()


def add_working_directory() -> None:
    """Put the working directory on Python's import path, in this process and its children."""
    working_directory = str(Path.cwd())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [working_directory, os.environ.get("PYTHONPATH", "")]))
    if working_directory not in sys.path:
        sys.path.insert(0, working_directory)


def search_path(folders: Iterable[Path] = ()) -> list[str]:
    """The override of Hydra's search path: these folders, `./configs` and the working directory; none if they have no groups.

    The project's configurations come first, so a user's file needs another name.
    """
    SourcesRegistry.instance().register(UserConfigSource)
    working_directory = Path.cwd()
    config_folders = [
        folder.resolve()
        for folder in [*folders, working_directory / USER_CONFIGS, working_directory]
        if folder.is_dir()
    ]
    config_folders = [
        folder for folder in dict.fromkeys(config_folders) if folder != CONFIGS.resolve() and _has_groups(folder)
    ]
    return [f"hydra.searchpath=[{','.join(_quoted(folder) for folder in config_folders)}]"] if config_folders else []


def check_recipes(overrides: Sequence[str]) -> None:
    """Check the recipes that overrides choose; Hydra ignores a missing one, since a data set may have none.

    Args:
        overrides: of a configuration that Hydra has composed, that of its search path included.

    Raises:
        ValueError: no such recipe; names the nearest.
    """
    paths = [override for override in overrides if override.startswith("hydra.searchpath=")]
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        name = value.strip("'\"").removesuffix(".yaml")
        if key.partition("@")[0] == "recipe" and name.lower() != "null":
            folder, _, leaf = f"recipe/{name}".rpartition("/")
            loader = GlobalHydra.instance().config_loader()
            known = loader.get_group_options(folder, ObjectType.CONFIG, "config", paths)
            if leaf not in known:
                nearest = difflib.get_close_matches(leaf, known, n=2)
                hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
                raise ValueError(f"{override}: no such recipe; {hint}there are {', '.join(known)}")


def _has_groups(folder: Path) -> bool:
    """Whether any of the project's groups has a configuration there."""
    return any((folder / group.name).is_dir() for group in CONFIGS.iterdir() if group.is_dir())


def _quoted(folder: Path) -> str:
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"'own://{escaped}'"
