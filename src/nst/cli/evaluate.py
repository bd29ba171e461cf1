"""Measure the accuracy of a finished run's student, or of any weights on any data set.

nst evaluate run=outputs/digits/resnet20-resnet8/nst_poly/seed0-1a2b3c4d
nst evaluate model=resnet56 weights=resnet56.safetensors data=cifar10 data.root=FOLDER

run=… uses the run's network, weights, data and normalisation. data=… measures its student on other images, root=FOLDER names the
folder of its data if it has moved, allow=[mynet.SmallNet] allows it to name your own code. Further keys: split=test (or train,
val), mean=[…] std=[…] (of the network's inputs), batch_size, device, precision.
"""

from collections.abc import Sequence
from dataclasses import replace

from omegaconf import DictConfig, OmegaConf

import nst.config
from nst.cli.compose import hydra_main
from nst.cli.errors import readable_errors


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    hydra_main(task, "evaluate", arguments)


def task(cfg: DictConfig) -> None:
    """Print top-1, top-5 and cross-entropy."""
    with readable_errors("evaluate"):
        check_subject(cfg)  # before anything is resolved
        settings = OmegaConf.to_object(cfg)
        assert isinstance(settings, nst.config.EvaluateConfig)
        evaluate_weights(settings)


def check_subject(settings: DictConfig) -> None:
    """Raises ValueError unless either a run or a model with weights and data is named."""
    named = [key for key in ("model", "weights") if getattr(settings, key) is not None]
    if settings.run is not None:
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


def evaluate_weights(settings: "nst.config.EvaluateConfig") -> None:
    """Evaluate and print.

    Raises:
        ValueError: a file or setting at fault.
    """
    from nst import build
    from nst.dist import join
    from nst.evaluate import evaluate
    from nst.export.finished import finished_run
    from nst.models.weights import load_weights
    from nst.runs.folder import STUDENT
    from nst.teacher import LiveTeacher, Normalization
    from nst.teacher.prepare import TeacherOutput, expected_normalization

    run = None
    if settings.run is not None:
        run = finished_run(settings.run, settings.root, settings.allow)
        weights, data = str(run.folder / STUDENT), settings.data or run.settings.data
        settings = replace(settings, model=run.settings.model, weights=weights, data=data)
    assert settings.weights is not None
    build.check_evaluation(settings)
    model = build.network("model", build.without_weights(settings.model), seed=0)
    if run is not None:
        run.log_changed_sources(model)
    metadata = load_weights(model, settings.weights)
    data = build.dataset(settings)
    if run is not None:
        run.check_classes(data)
    images = Normalization(data.mean, data.std)
    with join(settings.device) as group:
        model.to(group.device)
        live = LiveTeacher(
            model, (), images=images, expects=expected_normalization(settings.mean, settings.std, metadata)
        )
        loader = data.split(settings.split).loader(
            settings.batch_size, train=False, rank=group.rank, world=group.world, device=group.device
        )
        metrics = evaluate(TeacherOutput(live), loader.epoch(0), group, settings.precision)
        if group.main:
            recorded = run.accuracy_on(data, settings.split) if run is not None else None
            differs = recorded is not None and abs(recorded - metrics.top1) > 0.005
            top5 = f" top-5 {metrics.top5:.2f} %," if data.num_classes > 5 else ""
            print(
                f"{settings.model['name']} ({settings.weights}) on {metrics.images:,} {settings.split} images of {data.name}: "
                f"top-1 {metrics.top1:.2f} %,{top5} cross-entropy {metrics.loss:.4f}"
                + (f"; the run itself measured top-1 {recorded:.2f} %" if differs else "")
            )
