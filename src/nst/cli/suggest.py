"""A next command to suggest after a run: the user's arguments with a sensible change. It must compose and run."""

from pathlib import Path
from shlex import quote

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from nst.config import RunConfig


def next_command(settings: RunConfig, folder: str) -> str | None:
    """A sensible next command after the run in `folder`; None in a sweep, which suggests one at its end.

    After a baseline: the same student with a teacher. After a distillation: other losses and seeds. With overrides of one loss or of
    the cache, which would not fit other losses: other seeds only.
    """
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return None
    arguments = _typed()
    if settings.teacher.model is None:
        return _shell("nst train", [*_with_teacher(arguments), "loss=kd"])
    if set(settings.loss) == {"ce", "nst_poly"}:
        remaining = _without(arguments, ("seed",))
        if any(_key(argument).startswith(("loss.", "experiment", "cache.path")) for argument in remaining):
            return _shell("nst train -m", [*remaining, "seed=0,1,2"])
        return _shell(
            "nst train -m", [*_without(remaining, ("loss",)), "loss=ce,kd,at,nst_poly,kd_nst_poly", "seed=0,1,2"]
        )
    if any(str(node["_target_"]).endswith(".TensorBoard") for node in settings.tracker.values()):
        return _shell("tensorboard --logdir", [settings.outputs])
    return _shell("nst export", [f"run={folder}"])


def _typed() -> list[str]:
    """The overrides of this run as typed, and the configuration folders outside Hydra's default search path."""
    if not HydraConfig.initialized():
        return []
    hydra_config, working_directory = HydraConfig.get(), Path.cwd().resolve()
    sources = [Path(source.path) for source in hydra_config.runtime.config_sources if source.schema == "own"]
    folders = [
        folder for folder in sources if folder.resolve() not in (working_directory, working_directory / "configs")
    ]
    return [*(f"--config-dir={folder}" for folder in folders), *hydra_config.overrides.task]


def _with_teacher(arguments: list[str]) -> list[str]:
    """For a baseline: its overrides without those of losses and cache, plus a teacher."""
    remaining = _without(arguments, ("loss", "cache"))
    if not HydraConfig.initialized() or HydraConfig.get().runtime.choices.get("teacher") not in (None, "none"):
        return remaining
    keys, remaining = {_key(argument) for argument in remaining}, _without(remaining, ("teacher",))
    own = {"teacher", "experiment"} <= keys  # the experiment has a teacher: teacher=none was typed to replace it
    return remaining if own else [*remaining, "teacher=resnet20"]


def _without(arguments: list[str], groups: tuple[str, ...]) -> list[str]:
    """Overrides without those of some groups and their keys."""
    return [argument for argument in arguments if _key(argument).split(".")[0].split("@")[0] not in groups]


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def _shell(command: str, arguments: list[str]) -> str:
    """A command line that can be typed."""
    return " ".join([command, *map(quote, arguments)])
