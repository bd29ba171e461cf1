"""List the layers of teacher and student, their output shapes, and the pairs whose maps have the same size.

nst layers teacher=resnet56 model=resnet20 data=cifar10

The arguments are those of `nst train`. Lists named layers only (without names, the last layer of each map size); with
`all=true`, all layers. No data is read, and no weights are loaded or downloaded.
"""

from collections.abc import Sequence
from functools import partial

from omegaconf import DictConfig, OmegaConf

from nst.cli.compose import hydra_main
from nst.cli.errors import readable_errors
from nst.config import RunConfig

ALL = "all="  # an argument of this command only, not a key of a run


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    values = [argument.removeprefix(ALL).lower() for argument in arguments if argument.startswith(ALL)]
    with readable_errors(status=2):
        if not {*values} <= {"true", "false"}:
            raise ValueError(f"all={values[0]}: true or false is needed")
    arguments = [argument for argument in arguments if not argument.startswith(ALL)]
    hydra_main(partial(task, list_all="true" in values), "config", arguments)


def task(cfg: DictConfig, list_all: bool) -> None:
    """Print the layers that can be named."""
    with readable_errors():
        from nst import build

        keys = [f"loss.{name}.layers" for name, node in cfg.loss.items() if OmegaConf.is_list(node.get("layers"))]
        show(build.settings(cfg), list_all, keys[0] if keys else "layers")


def show(run: RunConfig, list_all: bool, key: str) -> None:
    """Print the layers of both networks, and the pairs that fit.

    Args:
        key: the key that sets the layers to compare: `layers`, or a loss's own.

    Raises:
        ValueError: a network that cannot be built, or a setting at fault.
    """
    from nst import build
    from nst.cli.layer_listing import describe, layers, matching, pairs_text

    image = (run.data["channels"], run.data["size"], run.data["size"])
    student = layers(build.network("model", build.without_download(run.model), 0), image)
    print(describe("student", run.model["name"], student, list_all))
    if run.teacher.model is not None:
        teacher = layers(build.network("teacher.model", build.without_download(run.teacher.model), 0), image)
        print("\n" + describe("teacher", run.teacher.model["name"], teacher, list_all))
        named = any(term.loss.source == "teacher" and not term.loss.on_logits for term in build.terms(run))
        print("\n" + pairs_text(matching(teacher, student), key if named else None))
