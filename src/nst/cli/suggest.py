"""A next command to suggest after a run: the user's arguments with a sensible change. It can be pasted into a shell."""

from shlex import join

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from nst.cli.compose import as_override
from nst.config import RunConfig


def next_command(settings: RunConfig, folder: str) -> str | None:
    """A sensible next command after the run in `folder`; None in a sweep, which suggests one at its end.

    After a baseline: the same student with a teacher. After the default loss: other losses and seeds. With settings of one loss or
    cache, which would not fit other losses: other seeds only.
    """
    typed, teacher = [], None
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            return None
        folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        typed = [*(f"--config-dir={path}" for path in folders), *map(_as_typed, hydra.overrides.task)]
        teacher = hydra.runtime.choices.get("teacher")
    if settings.teacher.model is None:
        kept = _without(typed, "loss", "cache")
        if teacher == "none":  # typed: the default teacher, or the experiment's, takes its place
            kept = _without(kept, "teacher") if "teacher=none" in kept else [*kept, "teacher=resnet20"]
        return join(["nst", "train", *kept, "loss=kd"])
    if set(settings.loss) == {"ce", "nst_poly"}:
        kept = _without(typed, "seed")
        if not any(argument.lstrip("+~").startswith(("loss.", "experiment", "cache.path")) for argument in kept):
            kept = [*_without(kept, "loss"), "loss=ce,kd,at,nst_poly,kd_nst_poly"]
        return join(["nst", "train", "-m", *kept, "seed=0,1,2"])
    if any(str(node["_target_"]).endswith(".TensorBoard") for node in settings.tracker.values()):
        return join(["tensorboard", "--logdir", settings.outputs])
    return join(["nst", "export", f"run={folder}"])


def _as_typed(override: str) -> str:
    """An override without the quotes of Hydra's grammar, where `as_override` adds them again."""
    value = OverridesParser.create().parse_override(override).value()
    plain = f"{override.partition('=')[0]}={value}" if isinstance(value, str) else override
    return plain if as_override(plain) == override else override


def _without(arguments: list[str], *groups: str) -> list[str]:
    """Overrides without those of some groups and their keys."""
    keys = {argument: argument.lstrip("+~").partition("=")[0] for argument in arguments}
    return [argument for argument, key in keys.items() if key.split(".")[0].split("@")[0] not in groups]
