"""Hydra for the commands: where it looks for configurations, what a shell user may type, and the call of a command."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import takewhile
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf

from nst.cli.errors import known_keys, nearest_keys, readable_errors, required
from nst.config import CONFIGS, START

LISTS = ("loss", "tracker", "metric")  # the groups of which several may be chosen
PLAIN_LISTS = ("formats", "int8_exclude")  # keys that take a single value without brackets, too


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
        """A file, which may have comments or a byte-order mark above its `# @package`.

        Raises:
            ValueError: not UTF-8.
        """
        file = Path(self.path) / self._normalize_file_name(config_path)
        try:
            text = file.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: is not UTF-8: {error}") from error
        result = super().load_config(config_path)
        comments = takewhile(lambda line: not line.strip() or line.startswith("#"), text.splitlines())
        header = [line for line in comments if line.lstrip("# ").startswith("@package")]
        result.header = self._get_header_dict("\n".join(header[:1]))
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
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))


def composed(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """A configuration, composed from overrides as they are typed, the user's own files included.

    Raises:
        ValueError, HydraException, OmegaConfBaseException: an override that cannot be; `nst.cli.errors.explain` has the words.
    """
    use_working_directory()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose(config_name, [as_override(override) for override in overrides])
        check_recipes(overrides)
    return cfg


def hydra_main(task: Callable[[DictConfig], Any], config_name: str, arguments: Sequence[str]) -> None:
    """Compose a configuration from a command's arguments and call `task` with it, once or in a sweep.

    A user's error in the arguments is one message and exit status 2.
    """

    @wraps(task)
    def checked(cfg: DictConfig) -> Any:
        with readable_errors(config_name, status=2):
            check_recipes(HydraConfig.get().overrides.task)
            if missing := _missing(OmegaConf.to_container(cfg), ""):
                raise ValueError(required(missing))
        return task(cfg)

    with readable_errors(config_name, status=2):
        use_working_directory()
        sys.argv[1:] = hydra_arguments(arguments, config_name)
        with env_override({"HYDRA_FULL_ERROR": "1"}):  # else Hydra prints its exceptions instead of raising them
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(checked)()


def _missing(node: Any, prefix: str) -> list[str]:
    """Keys whose value is `???`; OmegaConf's own search stops at the first interpolation of such a key."""
    if node == MISSING:
        return [prefix.removesuffix(".")]
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [key for name, value in inner for key in _missing(value, f"{prefix}{name}.")]


def hydra_arguments(arguments: Sequence[str], config_name: str) -> list[str]:
    """A command's arguments for Hydra, whose parser wants options first.

    Raises:
        ValueError: an unknown option, an argument that is not `key=value`, or a bracket that is not closed.
    """
    arguments = joined(arguments)
    known, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        following = [*arguments, ""][arguments.index(unknown[0]) + 1]
        name, _, value = unknown[0].lstrip("-").partition("=")
        nearest = nearest_keys(name.replace("-", "_"), list(known_keys(config_name)))
        example = f", for example {nearest[0]}={value or following or '…'}" if nearest else ""
        raise ValueError(f"{unknown[0]}: no such option; settings are written key=value{example}")
    options = list(arguments)
    for override in known.overrides:
        options.remove(override)
    overrides = known.overrides if known.shell_completion else map(as_override, known.overrides)
    return [*options, *overrides]


def joined(arguments: Sequence[str]) -> list[str]:
    """Join lists that were typed with spaces and without quotes, and so arrived as several arguments.

    Raises:
        ValueError: a bracket that is not closed.
    """
    result: list[str] = []
    for argument in arguments:
        if result and _open_brackets(result[-1]) > 0:
            result[-1] += f" {argument}"
        else:
            result.append(argument)
    if result and _open_brackets(result[-1]) > 0:
        raise ValueError(
            f"{result[-1]}: a bracket is not closed; lists are written key=[one,other], in quotes where they hold spaces"
        )
    return result


def _open_brackets(argument: str) -> int:
    """Brackets not closed in a list or mapping `key=[…` without quotes."""
    value = argument.partition("=")[2]
    if value[:1] not in ("[", "{") or "'" in value or '"' in value:
        return 0
    return sum(value.count(a) - value.count(b) for a, b in ("[]", "{}"))


def as_override(argument: str) -> str:
    """An argument as an override. A value that Hydra's grammar does not have, such as `epoch=6 (best).pt`, is text as it stands.

    Raises:
        ValueError: not `key=value`, or several choices in a group that has one.
    """
    key, equals, value = argument.partition("=")
    if not key.strip("+~ ") or not (equals or key.startswith("~")):
        raise ValueError(
            f"{argument!r}: settings are written key=value, for example model=resnet20 or trainer.epochs=30"
        )
    if value.startswith("~"):
        value = str(Path(value).expanduser())
    if key in [f"model.{name}" for name in START]:  # of any network, so in no network's own file
        key = f"++{key}"
    argument = f"{key}{equals}{value}"
    try:
        parsed = OverridesParser.create().parse_override(argument)
    except HydraException:
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    if key in PLAIN_LISTS and value and isinstance(parsed.value(), str):
        return f"{key}=[{value}]"
    if argument == "teacher=null":
        return "teacher=none"
    if (value == "null" or isinstance(parsed.value(), list)) and (CONFIGS / key).is_dir() and key not in LISTS:
        raise ValueError(f"{argument}: one choice is needed, {key}=NAME")
    return argument


def check_recipes(overrides: Sequence[str]) -> None:
    """Check the recipes that overrides choose; Hydra ignores a missing one, since a data set may have none.

    Raises:
        ValueError: no such recipe; names the nearest.
    """
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        name = value.strip("'\"").removesuffix(".yaml")
        if key.partition("@")[0] == "recipe" and name.lower() != "null":
            folder, _, leaf = f"recipe/{name}".rpartition("/")
            known = GlobalHydra.instance().config_loader().get_group_options(folder, ObjectType.CONFIG)
            if leaf not in known:
                nearest = difflib.get_close_matches(leaf, known, n=2)
                hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
                raise ValueError(f"{override}: no such recipe; {hint}there are {', '.join(known)}")
