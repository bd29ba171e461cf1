"""Where configurations, tables and Python files of one's own are found: `./configs` and the working directory."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

from nst.config import CONFIGS
from nst.yaml_files import check_yaml

OWN = "configs"  # folder of the working directory


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


def own_code() -> None:
    """Make the working directory a place that Python imports from, here and in processes started from here."""
    here = str(Path.cwd())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    if here not in sys.path:
        sys.path.insert(0, here)


def search_path(folders: Iterable[Path] = ()) -> list[str]:
    """The override that has Hydra also search these folders, `./configs` and the working directory; none where they hold nothing.

    The project's own configurations come first: a file of one's own needs a name of its own.
    """
    SourcesRegistry.instance().register(OwnConfigSource)
    here = Path.cwd()
    own = [folder.resolve() for folder in [*folders, here / OWN, here] if folder.is_dir()]
    own = [folder for folder in dict.fromkeys(own) if folder != CONFIGS.resolve() and _has_groups(folder)]
    return [f"hydra.searchpath=[{','.join(_quoted(folder) for folder in own)}]"] if own else []


def _has_groups(folder: Path) -> bool:
    """Whether any of the project's groups has a configuration there."""
    return any((folder / group.name).is_dir() for group in CONFIGS.iterdir() if group.is_dir())


def _quoted(folder: Path) -> str:
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"'own://{escaped}'"
