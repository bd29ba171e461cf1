"""One run, start to finish: check, build, have a teacher, train, write down what came out."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from nst import build
from nst.config import EvaluateConfig, RecipeConfig, RunConfig, TeacherConfig
from nst.data.dataset import Dataset
from nst.knowledge import LiveTeacher, Normalization
from nst.terminal import dry_run_tables, result_table
from nst.trainer.distributed import Ranks, ranks
from nst.trainer.evaluate import Metrics, evaluate
from nst.trainer.fit import Fit
from nst.trainer.folder import HeldError, RunFolder, identity, run_folder
from nst.trainer.heatmaps import heatmaps
from nst.trainer.loop import Trainer
from nst.trainer.provenance import provenance
from nst.weights import load_weights, save_weights, sha256_of, write_whole

STUDENT = "student.safetensors"


def run(cfg: DictConfig) -> dict[str, Any]:
    """Do what a composed configuration says, and print the result.

    Returns:
        The run's summary (also in `summary.json`); empty for a dry run.

    Raises:
        ValueError: a setting, file or result that makes the run impossible; raised before any work where it can be.
        Interrupted: stopped by a signal, saved.
    """
    settings = build.settings(cfg)
    if settings.dry_run:
        dry_run_tables(settings, build.networks(settings))
        return {}
    with ranks(settings.trainer.device) as here:
        summary = distil(settings, here)
        if here.main:
            result_table(settings, summary)
        return summary


def distil(settings: RunConfig, here: Ranks, data: Dataset | None = None, wait: bool = False) -> dict[str, Any]:
    """Train the student of `settings`, and its teacher first where its weights are neither given nor kept.

    Args:
        data: when it is already in memory.
        wait: where another process is at this very run, wait for its result.
    """
    config = asdict(settings)
    folder = RunFolder(run_folder(config))
    done = folder.summary()
    if done is not None:
        return {**done, "was_finished": True}
    networks = build.networks(settings)
    if settings.teacher.weights is not None and not Path(settings.teacher.weights).is_file():
        raise ValueError(f"teacher.weights={settings.teacher.weights}: no such file")
    data = data or build.dataset(settings)
    _check_split(settings, data, here)
    live, teacher = None, None
    if networks.teacher is not None:
        live, teacher = make_teacher(settings, networks, here, data)
    _hold(folder, config, here, wait)
    try:
        if wait and (done := folder.summary()) is not None:
            return {**done, "was_finished": True}
        return _train(settings, networks, here, data, folder, live, teacher)
    finally:
        folder.close()


def _hold(folder: RunFolder, config: dict[str, Any], here: Ranks, wait: bool) -> None:
    """Rank 0 takes the folder; the others wait for it, asking again and again: no collective call lasts long."""
    told = False
    while True:
        held = False
        try:
            if here.main:
                folder.open(config)
        except HeldError as error:
            if not wait:
                raise
            held = True
            if not told:
                print(f"waiting: {error}", flush=True)
            told = True
        if here.max(int(held)) == [0]:
            return


def _train(
    settings: RunConfig,
    networks: build.Networks,
    here: Ranks,
    data: Dataset,
    folder: RunFolder,
    live: LiveTeacher | None,
    teacher: dict[str, Any] | None,
) -> dict[str, Any]:
    knowledge = live if live is not None else lambda batch: {}
    loader = _loader(settings, here, data, "train")
    trainer = Trainer(
        networks.distiller, knowledge, loader,
        optim=settings.optim, settings=settings.trainer, ranks=here, seed=settings.seed,
    )  # fmt: skip
    evaluated = "val" if data.val is not None else "test"
    evaluation = _loader(settings, here, data, evaluated)
    draw = None
    if settings.trainer.heatmaps and here.main:
        sample = next(iter(data.loader("test", 8, train=False, device=here.device).epoch(0)))
        by_name = {"student": networks.distiller.student, "teacher": networks.teacher}
        draw = partial(heatmaps, sample.images, by_name, Normalization(data.mean, data.std))
    about = {  # what rank 0 finds must be the same in every start of the run
        "config": identity(asdict(settings)),
        "teacher": {"sha256": teacher["sha256"]} if teacher else None,
        "data": {"sha256": data.fingerprint} if here.main else None,
    }
    last = Fit(trainer, evaluation, folder.path, draw, about=about).run()
    test = last
    if evaluated == "val":
        student = networks.distiller.student
        test = evaluate(student, _loader(settings, here, data, "test").epoch(0), here, settings.trainer.precision)
    summary = {
        "finished": True,
        "folder": str(folder.path),
        "test": asdict(test),
        "evaluated_on": evaluated,
        "last": asdict(last),
        "best": {"top1": trainer.progress.best_top1, "epoch": trainer.progress.best_epoch},
        "teacher": teacher,
        "student": {"name": settings.model["name"], "parameters": count_parameters(networks.distiller.student)},
        "seeds": {"run": settings.seed, "teacher": settings.teacher.seed},
        "steps": trainer.progress.step,
        "skipped_steps": trainer.progress.skipped,
        "seconds": round(trainer.progress.seconds, 2),
        **provenance(here.device, here.world),
        "config": asdict(settings),
    }
    if here.main:
        metadata = {
            "arch": settings.model["name"],
            "dataset": data.name,
            "mean": ",".join(str(v) for v in data.mean),
            "std": ",".join(str(v) for v in data.std),
            "test_accuracy": f"{test.top1 / 100:.4f}",
        }
        save_weights(folder.path / STUDENT, networks.distiller.student, metadata)
        write_whole(folder.path / "summary.json", json.dumps(summary, indent=1).encode())
    here.barrier()
    return summary


def make_teacher(
    settings: RunConfig, networks: build.Networks, here: Ranks, data: Dataset
) -> tuple[LiveTeacher, dict[str, Any]]:
    """The teacher with its weights, and what is known of it: its accuracy is measured here.

    Raises:
        ValueError: weights of another architecture, or an accuracy below the floor (by default: near chance).
    """
    assert networks.teacher is not None
    weights, images = settings.teacher.weights, Normalization(data.mean, data.std)
    if weights is None:
        weights = str(Path(distil(teacher_run(settings), here, data, wait=True)["folder"]) / STUDENT)
    metadata = load_weights(networks.teacher, weights)
    expects = expected_normalization(settings.teacher, metadata) or images
    networks.teacher.to(here.device)
    live = LiveTeacher(networks.teacher, networks.distiller.requests, images=images, expects=expects)
    split = "val" if data.val is not None else "test"
    metrics = measure(live, settings, here, data, split)
    floor = settings.teacher.min_accuracy
    if floor is None:
        floor = min(200 / data.num_classes, 50 + 50 / data.num_classes)  # twice chance; for two classes 75 %
        reason = (
            "close to guessing: wrong weights, classes in another order, or another normalisation (teacher.mean, .std)?"
        )
    else:
        reason = f"teacher.min_accuracy={floor} is asked for"
    if metrics.top1 < floor:
        raise ValueError(
            f"the teacher ({weights}) scores {metrics.top1:.2f} % on the {split} images; {reason} "
            "teacher.min_accuracy=0 accepts any teacher"
        )
    if here.main:
        print(f"teacher {settings.teacher.model['name']}: top-1 {metrics.top1:.2f} % on the {split} images ({weights})")
    about = {
        "name": settings.teacher.model["name"],
        "weights": weights,
        "sha256": sha256_of(weights),
        "parameters": count_parameters(networks.teacher),
        "evaluated_on": split,
        **asdict(metrics),
    }
    return live, about


def teacher_run(settings: RunConfig) -> RunConfig:
    """The run that trains the teacher: its own recipe and seed, whatever the student's."""
    recipe = settings.teacher.recipe
    ce = {"weight": 1.0, "_target_": "nst.losses.CrossEntropy"}
    return replace(
        settings,
        model=settings.teacher.model,
        teacher=TeacherConfig(recipe=RecipeConfig(), seed=0),
        loss={"ce": ce},
        optim=recipe.optim,
        trainer=replace(settings.trainer, epochs=recipe.trainer.epochs, batch_size=recipe.trainer.batch_size),
        seed=settings.teacher.seed,
    )


def expected_normalization(teacher: TeacherConfig | EvaluateConfig, metadata: dict[str, str]) -> Normalization | None:
    """What the weights were trained on: as configured, else as stored with them, else unknown."""
    stored = {key: [float(v) for v in metadata[key].split(",")] for key in ("mean", "std") if key in metadata}
    mean, std = teacher.mean or stored.get("mean"), teacher.std or stored.get("std")
    return Normalization(tuple(mean), tuple(std)) if mean and std else None


class _Output(nn.Module):
    """A teacher as a plain module from the student's images to logits, for evaluation."""

    def __init__(self, live: LiveTeacher) -> None:
        super().__init__()
        self.live = live

    def forward(self, images: Any) -> Any:
        logits = self.live.logits(images)
        self.live.taps.read()
        return logits


def measure(live: LiveTeacher, settings: RunConfig, here: Ranks, data: Dataset, split: str) -> Metrics:
    """The teacher's own accuracy."""
    return evaluate(
        _Output(live).eval(), _loader(settings, here, data, split).epoch(0), here, settings.trainer.precision
    )


def _loader(settings: RunConfig, here: Ranks, data: Dataset, split: str) -> Any:
    train = split == "train"
    return data.loader(
        split,
        settings.trainer.batch_size if train else settings.trainer.eval_batch_size,
        train=train,
        seed=settings.seed,
        rank=here.rank,
        world=here.world,
        device=here.device,
        channels_last=settings.trainer.channels_last,
    )


def _check_split(settings: RunConfig, data: Dataset, here: Ranks) -> None:
    images, batch = len(data.train), settings.trainer.batch_size
    tail = images % batch or batch
    if min(batch, tail) < here.world:
        raise ValueError(
            f"trainer.batch_size={batch}: the last batch of an epoch of {images} images has {min(batch, tail)}, "
            f"too few for {here.world} ranks; choose another batch size"
        )


def count_parameters(model: nn.Module) -> int:
    """Trainable values."""
    return sum(p.numel() for p in model.parameters())


def evaluate_weights(cfg: DictConfig) -> Metrics:
    """Do what `configs/evaluate.yaml` describes and print the result.

    Raises:
        ValueError: a file or setting at fault.
    """
    asked = OmegaConf.to_object(cfg)
    assert isinstance(asked, EvaluateConfig)
    model = build.network("model", asked.model, seed=0)
    metadata = load_weights(model, asked.weights)
    data = build.dataset(asked)
    images = Normalization(data.mean, data.std)
    with ranks(asked.device) as here:
        model.to(here.device)
        live = LiveTeacher(model, (), images=images, expects=expected_normalization(asked, metadata))
        loader = data.loader(
            asked.split, asked.batch_size, train=False, rank=here.rank, world=here.world, device=here.device
        )
        metrics = evaluate(_Output(live), loader.epoch(0), here, asked.precision)
        if here.main:
            print(
                f"{asked.model['name']} ({asked.weights}) on {metrics.images:,} {asked.split} images of {data.name}: "
                f"top-1 {metrics.top1:.2f} %, top-5 {metrics.top5:.2f} %, cross-entropy {metrics.loss:.4f}"
            )
    return metrics
