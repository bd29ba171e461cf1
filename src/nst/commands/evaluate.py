"""Measure the accuracy of any weights on any data set.

nst evaluate model=resnet56 weights=resnet56.safetensors data=cifar10 data.root=FOLDER
"""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

import nst.config
from nst.commands.compose import hydra_main
from nst.errors import readable_errors


def main(words: Sequence[str]) -> None:
    """Do what the words say."""
    hydra_main(task, "evaluate", words)


def task(cfg: DictConfig) -> None:
    """Print top-1, top-5 and cross-entropy."""
    with readable_errors("evaluate"):
        settings = OmegaConf.to_object(cfg)
        assert isinstance(settings, nst.config.EvaluateConfig)
        evaluate_weights(settings)


def evaluate_weights(settings: "nst.config.EvaluateConfig") -> None:
    """Evaluate and print.

    Raises:
        ValueError: a file or setting at fault.
    """
    from nst import build
    from nst.models.weights import load_weights
    from nst.runs.teacher import TeacherOutput, expected_normalization
    from nst.teacher import LiveTeacher, Normalization
    from nst.training.evaluate import evaluate
    from nst.training.ranks import ranks

    model = build.network("model", settings.model, seed=0)
    metadata = load_weights(model, settings.weights)
    data = build.dataset(settings)
    images = Normalization(data.mean, data.std)
    with ranks(settings.device) as here:
        model.to(here.device)
        live = LiveTeacher(model, (), images=images, expects=expected_normalization(settings, metadata))
        loader = data.split(settings.split).loader(
            settings.batch_size, train=False, rank=here.rank, world=here.world, device=here.device
        )
        metrics = evaluate(TeacherOutput(live), loader.epoch(0), here, settings.precision)
        if here.main:
            print(
                f"{settings.model['name']} ({settings.weights}) on {metrics.images:,} {settings.split} images of {data.name}: "
                f"top-1 {metrics.top1:.2f} %, top-5 {metrics.top5:.2f} %, cross-entropy {metrics.loss:.4f}"
            )
