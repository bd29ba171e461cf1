"""Hydra for the commands: where it looks for configurations, what a shell user may type, and its errors in one line."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
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
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nst.config import CONFIGS, START, renamed
from nst.files import flat
from nst.signals import Interrupted

Task = Callable[[DictConfig], Any]
LISTS = ("loss", "tracker", "metric")  # the groups of which several may be chosen
# Errors that a user can cause and fix; anything else is a bug and shows its traceback.
USER_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, FloatingPointError)
# Hydra's plugin → NST's extra that installs it.
EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray", "optuna": "optuna"}
NO_SLURM = 'Could not detect "srun"'  # a RuntimeError of submitit


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
            packages = re.findall(r"^# *@package .*$", file.read_text("utf-8-sig"), re.M)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: is not UTF-8: {error}") from error
        result = super().load_config(config_path)
        result.header = self._get_header_dict("\n".join(packages[:1]))
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
    """A configuration of overrides as they are typed, the user's own files included. Raises ValueError for one that cannot be."""
    use_working_directory()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = hydra.compose(config_name, [as_override(override) for override in overrides])
            check(cfg, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, config_name, overrides)) from error
    return cfg


def hydra_main(task: Task, config_name: str, arguments: Sequence[str], first: Task = lambda cfg: None) -> None:
    """Compose a configuration from a command's arguments and call `task` with it, once or in a sweep.

    A user's error is one message: exit status 2 for the arguments, 1 once the task has begun. `first` is called before anything is
    resolved, and may raise ValueError for arguments that do not go together.
    """
    shown = {"HYDRA_FULL_ERROR": os.environ.get("HYDRA_FULL_ERROR", "")}

    def checked(cfg: DictConfig) -> Any:
        sweep = HydraConfig.get().mode == RunMode.MULTIRUN  # its callback has the errors; of a run's Hydra prints more
        errors = nullcontext(SimpleNamespace()) if sweep else readable_errors(config_name, arguments)
        with env_override(shown), errors as end:
            first(cfg)
            check(cfg, HydraConfig.get().overrides.task)
            end.status = 1
            return task(cfg)

    with readable_errors(config_name, arguments):
        use_working_directory()
        sys.argv[1:] = hydra_arguments(arguments, config_name)
        with env_override({"HYDRA_FULL_ERROR": "1"}):  # else Hydra prints its exceptions instead of raising them
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(checked)()


def hydra_arguments(arguments: Sequence[str], config_name: str) -> list[str]:
    """A command's arguments for Hydra, whose parser wants options first. Raises ValueError for an unknown option."""
    known, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        hint = nearest(unknown[0].lstrip("-").partition("=")[0], known_keys(config_name, ()))
        raise ValueError(f"{unknown[0]}: no such option; settings are written key=value; {hint}")
    options = [argument for argument in arguments if argument not in known.overrides]
    return [*options, *(known.overrides if known.shell_completion else map(as_override, known.overrides))]


def as_override(argument: str) -> str:
    """An argument as an override; a value that Hydra's grammar does not have, such as `epoch=6 (best).pt`, is text as it stands.

    Raises ValueError for what is not `key=value`, a list that is not closed, and several choices where one is needed.
    """
    key, equals, value = argument.partition("=")
    if not key.strip("+~ ") or not (equals or key.startswith("~")):
        raise ValueError(f"{argument!r}: settings are written key=value, for example model=resnet20")
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
            raise ValueError(f"{argument}: a bracket is not closed; a list with spaces needs quotes") from error
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    if (value == "null" or isinstance(parsed.value(), list)) and (CONFIGS / key).is_dir() and key not in LISTS:
        raise ValueError(f"{argument}: one choice is needed, {key}=NAME")
    return f"{key}{equals}{value}"


def check(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raises an error of OmegaConf for what cannot be resolved, MissingConfigException for an unknown recipe: Hydra passes over both."""
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        loader = GlobalHydra.instance().config_loader()
        if key.partition("@")[0] == "recipe" and value not in loader.get_group_options("recipe"):
            raise MissingConfigException(f"Could not find 'recipe/{value}'")


@contextmanager
def readable_errors(config_name: str = "config", arguments: Sequence[str] = ()) -> Iterator[SimpleNamespace]:
    """End the process with a message and an exit status on a user's error, and quietly after a stop on request.

    The block gets an object whose `status` is that of an error: 2 while arguments are read; the block sets 1 when its work begins.
    With several ranks only the first to fail prints its error. What is composed of `arguments` is for suggestions.
    """
    end = SimpleNamespace(status=2)
    try:
        yield end
    except (Interrupted, KeyboardInterrupt) as stop:
        saved = isinstance(stop, Interrupted)
        if os.environ.get("RANK", "0") == "0":
            print(stop if saved else "stopped at once; the last checkpoint is kept", file=sys.stderr)
        sys.exit(stop.status if saved else 130)
    except Exception as error:
        if "RANK" in os.environ:
            from nst.dist import should_report_error

            if not should_report_error():
                sys.exit(end.status)
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (isinstance(error, USER_ERRORS) or NO_SLURM in str(error)):
            raise
        text = explain(error, config_name, arguments)
        print(f"error: {text}\n(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
        sys.exit(end.status)


def explain(error: BaseException, config_name: str = "config", arguments: Sequence[str] = ()) -> str:
    """The message of `error`; one of Hydra's without its internals and with what could have been meant."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return str(error)
    key = getattr(error, "full_key", None)
    internals = r"\n\s*(?:full_key|reference_type|object_type|Config search path|To append to your config)"
    parts = [re.split(internals, str(part))[0] for part in (error, error.__cause__) if part is not None]
    text = "\n".join(dict.fromkeys(parts))
    if match := re.search(r"(?i)missing mandatory value: (\S+)", text):
        key = match[1] if "interpolation" in text else key or match[1]
        return f"`{key}` is required: pass {key}=…"
    if match := re.search(r"Could not (?:find|load) '([\w/]+)/([^']+)'", text):
        group, choice = match.groups()
        if choice in EXTRAS:
            return f"{group}={choice} comes with an extra: pip install 'nst[{EXTRAS[choice]}]'"
        folders = [folder / group for folder in (CONFIGS, *user_folders())]
        names = {str(file.relative_to(at).with_suffix("")) for at in folders for file in at.rglob("*.yaml")}
        return f"{group}={choice}: no such choice; {nearest(choice, sorted(names))}"
    if match := re.search(r"Could not override '[+~]*([^']+)'|Key '([^']+)' not in", text):
        name = match[1] or match[2]
        return renamed(name) or f"{name}: no such key; {nearest(name, known_keys(config_name, arguments))}"
    return text if not key or key in text.split("\n")[0] else f"{key}: {text}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint at what a misspelt name could be: similar ones (for one without dots, keys that end so), else all there are."""
    keys = sorted(known, key=lambda key: (key.startswith(("recipe", "teacher.")), key.count(".")))  # a run's own first
    ends = {key: key if "." in name else key.rpartition(".")[2] for key in keys}
    close = difflib.get_close_matches(name, dict.fromkeys(ends.values()), n=3)
    found = [key for end in close for key in keys if ends[key] == end and not name.startswith(f"{key}.")]
    if found:
        return f"did you mean {' or '.join(found[:3])}?"
    return f"there are {', '.join(key for key in keys if '.' not in key)}"


def known_keys(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Dotted names of all keys of a configuration, with the choices of groups in `arguments` where they compose."""
    chosen = [arg for arg in arguments if "=" in arg and (CONFIGS / arg.partition("=")[0].lstrip("+")).is_dir()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for overrides in (chosen, []):
            with suppress(HydraException, OmegaConfBaseException, ValueError):
                composed = OmegaConf.to_container(hydra.compose(config_name, overrides))
                names = [name.split(".") for name in flat(composed)]
                return list(dict.fromkeys(".".join(name[:n]) for name in names for n in range(1, len(name) + 1)))
    return []
