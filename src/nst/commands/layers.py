"""List the layers of teacher and student, their output shapes, and the pairs whose maps have the same size.

nst layers teacher=resnet56 model=resnet20 data=cifar10

The arguments are those of `nst train`. Lists layers with a role only (without roles, the last layer of each map size); with
`all=true`, all layers. No data is read, and no weights are loaded or downloaded.
"""

from collections.abc import Sequence
from functools import partial

from omegaconf import DictConfig, OmegaConf

import nst.config
from nst.commands.compose import hydra_main
from nst.errors import readable_errors

ALL = "all="  # an argument of this command only, not a key of a run


def main(words: Sequence[str]) -> None:
    """Run the command with its arguments."""
    with readable_errors():
        every = {word.removeprefix(ALL).lower() for word in words if word.startswith(ALL)}
        if not every <= {"true", "false"}:
            raise ValueError(f"all={', '.join(sorted(every))}: true or false is needed")
    hydra_main(partial(task, every="true" in every), "config", [word for word in words if not word.startswith(ALL)])


def task(cfg: DictConfig, every: bool) -> None:
    """Print what can be tapped."""
    with readable_errors():
        from nst import build

        own = [f"loss.{name}.taps" for name, node in cfg.loss.items() if OmegaConf.is_list(node.get("taps"))]
        show(build.settings(cfg), every, own[0] if own else "taps")


def show(run: "nst.config.RunConfig", every: bool, key: str) -> None:
    """Print the layers of both networks, and the pairs that fit.

    Args:
        key: the key that sets the layers to compare: `taps`, or a loss's own.

    Raises:
        ValueError: a network that cannot be built, or a setting at fault.
    """
    from nst import build
    from nst.layers import describe, layers, matching, pairs_text, without_weights

    image = (run.data["channels"], run.data["size"], run.data["size"])
    student = layers(build.network("model", without_weights(run.model), 0), image)
    print(describe("student", run.model["name"], student, every))
    if run.teacher.model is not None:
        teacher = layers(build.network("teacher.model", without_weights(run.teacher.model), 0), image)
        print("\n" + describe("teacher", run.teacher.model["name"], teacher, every))
        tapped = any(term.loss.source == "teacher" and not term.loss.on_logits for term in build.terms(run))
        print("\n" + pairs_text(matching(teacher, student), key if tapped else None))
