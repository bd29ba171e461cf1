"""Hydra for the commands: where it looks for configurations, what a shell user may type, and the call of a command."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nst.cli.errors import explain, known_keys, nearest_keys, readable_errors
from nst.config import CONFIGS, START

LISTS = ("loss", "tracker", "metric")  # the groups of which several may be chosen


def user_folders() -> list[Path]:
    """The folders of the user's configurations, those with a group of the project's: `./configs` and the working directory."""
    groups = [group.name for group in CONFIGS.iterdir() if group.is_dir()]
    folders = [folder for folder in (Path.cwd() / "configs", Path.cwd()) if folder.resolve() != CONFIGS.resolve()]
    return [folder for folder in folders if any((folder / group).is_dir() for group in groups)]


class UserFolder(FileConfigSource):
    """A folder of the user's, `own://FOLDER`: only folders named like the project's groups are groups, so `outputs/` is none."""

    @staticmethod
    def scheme() -> str:
        """`own`."""
        return "own"

    def is_group(self, config_path: str) -> bool:
        """Whether a folder is one of the project's groups."""
        first = config_path.strip("/").partition("/")[0]
        return (not first or (CONFIGS / first).is_dir()) and super().is_group(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        """A file, which may have comments or a byte-order mark above its `# @package`. Raises ValueError if it is not UTF-8."""
        file = Path(self.path) / self._normalize_file_name(config_path)
        try:
            text = file.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: is not UTF-8: {error}") from error
        result = super().load_config(config_path)
        result.header = self._get_header_dict("\n".join(re.findall(r"^# *@package .*$", text, re.M)[:1]))
        return result


class UserFolders(SearchPathPlugin):
    """Appends the user's folders to Hydra's search path: the project's come first, so a user's file needs another name."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it starts."""
        for folder in user_folders():
            search_path.append("own", f"own://{folder}")


def use_working_directory() -> None:
    """Let Hydra find the user's configurations, and Python, here and in child processes, the modules they name."""
    for plugin in (UserFolder, UserFolders):
        Plugins.instance().register(plugin)
    folder, before = str(Path.cwd()), os.environ.get("PYTHONPATH", "")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if folder not in before.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, before]))


def composed(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """A configuration, composed from overrides as they are typed, the user's own files included.

    Raises:
        ValueError: an override that cannot be, with the nearest one that can.
    """
    use_working_directory()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = hydra.compose(config_name, [as_override(override) for override in overrides])
            check(cfg, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, config_name, overrides)) from error
    return cfg


def hydra_main(
    task: Callable[[DictConfig], Any],
    config_name: str,
    arguments: Sequence[str],
    check_first: Callable[[DictConfig], None] = lambda cfg: None,
) -> None:
    """Compose a configuration from a command's arguments and call `task` with it, once or in a sweep.

    A user's error is one message: exit status 2 for the arguments, 1 once the task has begun.

    Args:
        check_first: before anything is resolved; raises ValueError for arguments that do not go together.
    """
    with readable_errors(config_name, arguments) as end:

        def checked(cfg: DictConfig) -> Any:
            check_first(cfg)
            check(cfg, HydraConfig.get().overrides.task)
            end.status = 1
            return task(cfg)

        use_working_directory()
        sys.argv[1:] = hydra_arguments(arguments, config_name)
        with env_override({"HYDRA_FULL_ERROR": "1"}):  # else Hydra prints its exceptions instead of raising them
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(checked)()


def hydra_arguments(arguments: Sequence[str], config_name: str) -> list[str]:
    """A command's arguments for Hydra, whose parser wants options first. Raises ValueError for an unknown option."""
    known, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        nearest = nearest_keys(unknown[0].lstrip("-").partition("=")[0], known_keys(config_name, ()))
        example = f"; did you mean {nearest[0]}=…?" if nearest else ""
        raise ValueError(f"{unknown[0]}: no such option; settings are written key=value{example}")
    options = [argument for argument in arguments if argument not in known.overrides]
    return [*options, *(known.overrides if known.shell_completion else map(as_override, known.overrides))]


def as_override(argument: str) -> str:
    """An argument as an override. A value that Hydra's grammar does not have, such as `epoch=6 (best).pt`, is text as it stands.

    Raises:
        ValueError: not `key=value`, a list that is not closed, or several choices in a group that has one.
    """
    key, equals, value = argument.partition("=")
    if not key.strip("+~ ") or not (equals or key.startswith("~")):
        raise ValueError(
            f"{argument!r}: settings are written key=value, for example model=resnet20 or trainer.epochs=30"
        )
    if argument == "teacher=null":
        return "teacher=none"
    if value.startswith("~"):
        value = str(Path(value).expanduser())
    if key in [f"model.{name}" for name in START]:  # of any network, so in no network's own file
        key = f"++{key}"
    try:
        parsed = OverridesParser.create().parse_override(f"{key}{equals}{value}")
    except HydraException as error:
        if value[:1] in ("[", "{") and any(value.count(a) != value.count(b) for a, b in ("[]", "{}")):
            raise ValueError(
                f"{argument}: a bracket is not closed; lists are written key=[one,other], in quotes where they hold spaces"
            ) from error
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    if (value == "null" or isinstance(parsed.value(), list)) and (CONFIGS / key).is_dir() and key not in LISTS:
        raise ValueError(f"{argument}: one choice is needed, {key}=NAME")
    return f"{key}{equals}{value}"


def check(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Check what Hydra does not: that no value is missing, and that there are the recipes that were asked for.

    Raises:
        OmegaConfBaseException: a required value is missing, or an interpolation cannot be resolved.
        ValueError: no such recipe, which Hydra ignores, since a data set may have none.
    """
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key.partition("@")[0] == "recipe":
            known = GlobalHydra.instance().config_loader().get_group_options("recipe")
            if value not in known:
                nearest = difflib.get_close_matches(value, known, n=2)
                hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
                raise ValueError(f"{override}: no such recipe; {hint}there are {', '.join(known)}")
