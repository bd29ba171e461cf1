"""Measure the accuracy of a finished run's student, or of any weights on any data set.

nst evaluate run=outputs/digits/resnet20-resnet8/nst_poly/seed0-1a2b3c4d
nst evaluate model=resnet56 weights=resnet56.safetensors data=cifar10 data.root=FOLDER

run=FOLDER       of a finished run: its network, weights, data and normalisation
root=FOLDER      of the run's data, if it has moved
data=NAME        with run=…: other images for its student
model=NAME       without a run: a network, with weights=FILE (weights_key=NAME where it holds several states) and data=NAME
split=test       or train, val
mean=[…] std=[…] of the network's inputs; default: as stored with the weights, else the data's
to=FOLDER        of evaluation.json; default: the run's; without a run nothing is written
device=auto      or cpu, cuda
batch_size=500
precision=fp32   or bf16
"""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

import nst.config
from nst.cli.compose import hydra_main
from nst.cli.errors import readable_errors


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    hydra_main(task, "evaluate", arguments)


def task(cfg: DictConfig) -> None:
    """Print accuracy and the worst classes, write `evaluation.json`."""
    with readable_errors("evaluate", status=2):
        check_subject(cfg)  # before anything is resolved
    with readable_errors("evaluate"):
        settings = OmegaConf.to_object(cfg)
        assert isinstance(settings, nst.config.EvaluateConfig)
        from nst.export.evaluation import evaluate_weights

        evaluate_weights(settings)


def check_subject(settings: DictConfig) -> None:
    """Raises ValueError unless either a run or a model with weights and data is named."""
    named = [key for key in ("model", "weights") if getattr(settings, key) is not None]
    if settings.run is not None:
        named = [key for key in named if settings[key] not in ("last", "best")]
        if named:
            raise ValueError(f"run={settings.run} has its own model and weights; remove {' and '.join(named)}")
        if settings.root is not None and settings.data is not None:
            raise ValueError(
                f"root={settings.root} is for the run's own data; with data=… pass data.root={settings.root}"
            )
        return
    if "weights" not in named:
        raise ValueError("`run` or `weights` is required: pass run=FOLDER, or model=… weights=FILE data=…")
    for key in ("model", "data"):
        if getattr(settings, key) is None:
            raise ValueError(f"`{key}` is required with weights={settings.weights}: pass {key}=…")
    if settings.root is not None:
        raise ValueError(f"root={settings.root} is for the data of run=…; without a run pass data.root={settings.root}")
