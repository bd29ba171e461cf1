"""One run from start to finish: checks, data, teacher and its summaries, training, results."""

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nst import build
from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.evaluate import Metrics, evaluate
from nst.files import sha256_of, write_whole
from nst.models.weights import save_weights
from nst.precision import check_precision
from nst.runs.folder import STUDENT, SUMMARY, RunFolder, RunLockedError, not_default, run_folder, run_key
from nst.runs.heatmaps import heatmaps
from nst.runs.provenance import changed_sources, provenance, user_sources
from nst.runs.record import RunRecord
from nst.runs.same_data import check_same_data
from nst.runs.teacher import teacher_run
from nst.runs.trackers import RunInfo
from nst.teacher import Normalization, Teacher, make_teacher
from nst.teacher.prepare import cached_teacher_sha256
from nst.training.loop import Loop
from nst.training.trainer import Trainer

log = logging.getLogger(__name__)


def distil(settings: RunConfig, ranks: Dist, data: Dataset | None = None, wait: bool = False) -> dict[str, Any]:
    """Train the student of `settings`; first its teacher, if that has no weights yet.

    Args:
        data: the data set, if it is already in memory.
        wait: if another process has locked this run, wait for its result.

    Returns:
        The run's summary; with `was_finished` if it was finished before.

    Raises:
        ValueError: for whatever makes the run impossible.
    """
    # check
    config = asdict(settings)
    for key, value in (("trainer", settings.trainer.precision), ("teacher", settings.teacher.precision)):
        check_precision(f"{key}.precision", value, ranks.device)
    if settings.teacher.model is not None and settings.teacher.weights is None:
        check_precision("teacher.train.precision", settings.teacher.train.precision, ranks.device)
    folder = RunFolder(run_folder(config))
    networks = None if _is_finished(folder, ranks) else build.networks(settings)
    if settings.teacher.weights is not None and not Path(settings.teacher.weights).is_file():
        raise ValueError(f"teacher.weights={settings.teacher.weights}: no such file")
    _check_cache_folder(settings, ranks)
    # data
    data = data or build.dataset(settings)
    check_same_data(data, ranks)
    if networks is None:
        return _finished(settings, folder, ranks, data)
    _check_split(settings, data, ranks)
    # teacher and its summaries
    teacher = prepare_teacher(settings, networks, ranks, data)
    # train, write
    _lock(folder, config, ranks, wait)
    try:
        if _is_finished(folder, ranks):  # by another process in the meantime
            return _finished(settings, folder, ranks, data)
        return _train(settings, networks, ranks, data, folder, teacher)
    finally:
        folder.close()


def prepare_teacher(settings: RunConfig, networks: build.Networks, ranks: Dist, data: Dataset) -> Teacher:
    """The source of the teacher's summaries; a teacher without weights is trained first, a missing cache is written.

    Raises:
        ValueError: as `make_teacher`, or from the run that trains the teacher.
    """
    weights = settings.teacher.weights
    if weights is None and settings.teacher.model is not None:
        trained = RunFolder(run_folder(asdict(teacher_run(settings))))
        if not cached_teacher_sha256(settings.cache.path) or _is_finished(trained, ranks):
            weights = _trained_teacher(settings, ranks, data)
    node = settings.teacher.model
    return make_teacher(
        networks.teacher,
        weights,
        networks.distiller.target_specs,
        networks.teacher_shapes,
        data,
        ranks,
        name=node["name"] if node else "none",
        arguments=not_default(node, ("name", "num_classes", "in_channels")) if node else {},
        settings=settings.teacher,
        cache=settings.cache,
        trainer=settings.trainer,
        outputs=settings.outputs,
    )


def write_teacher_cache(settings: RunConfig, ranks: Dist, data: Dataset | None = None) -> Teacher:
    """Write the teacher cache for these settings.

    Raises:
        ValueError: nothing to cache, a cache that does not match, a disk that is too small, a damaged file.
    """
    if settings.teacher.model is None:
        raise ValueError("no term of the loss needs a teacher; choose for example loss=[kd,at,nst_poly]")
    networks, data = build.networks(settings), data or build.dataset(settings)
    check_same_data(data, ranks)
    return prepare_teacher(settings, networks, ranks, data)


def _trained_teacher(settings: RunConfig, ranks: Dist, data: Dataset) -> str:
    """The weights file of a teacher without `teacher.weights`: trains it unless that run is finished."""
    teacher_settings = teacher_run(settings)
    folder = run_folder(asdict(teacher_settings))
    if ranks.main and not (folder / SUMMARY).is_file():
        print(
            f"teacher {teacher_settings.model['name']} has no weights yet: it is trained first, "
            f"{teacher_settings.trainer.epochs} epochs by teacher.train, and kept in {folder}"
        )
    return str(Path(distil(teacher_settings, ranks, data, wait=True)["folder"]) / STUDENT)


def _is_finished(folder: RunFolder, ranks: Dist) -> bool:
    """Rank 0 decides for all: another process may finish the run at any moment."""
    return ranks.max(int(ranks.main and folder.summary() is not None)) == [1]


def _finished(settings: RunConfig, folder: RunFolder, ranks: Dist, data: Dataset) -> dict[str, Any]:
    """The summary of a finished run; logs which of the user's own code has changed since.

    Raises:
        ValueError: its data, teacher weights or named teacher cache differ from the settings, or its student's file has changed.
    """
    summary = folder.summary()
    assert summary is not None
    redo = f"delete {folder.path} to run it again"
    if (digest := summary["data"]["sha256"]) != data.fingerprint:
        raise ValueError(
            f"{folder.path} is finished, on images of fingerprint {digest[:16]}…; data={data.name} now has "
            f"{data.fingerprint[:16]}…. Give the new images another data.name or outputs, or {redo}"
        )
    if (digest := sha256_of(folder.path / STUDENT)) != summary["student"]["sha256"]:
        raise ValueError(
            f"{folder.path / STUDENT} has SHA-256 {digest}, not {summary['student']['sha256']}; restore it, or {redo}"
        )
    weights, teacher = settings.teacher.weights, summary["teacher"]
    if teacher is not None and weights is not None and (digest := sha256_of(weights)) != teacher["sha256"]:
        raise ValueError(
            f"{folder.path} is finished, with a teacher of SHA-256 {teacher['sha256']}; {weights} now has {digest}. "
            f"Give the new weights another name, or {redo}"
        )
    cached = cached_teacher_sha256(settings.cache.path)
    if teacher is not None and cached is not None and cached != teacher["sha256"]:
        raise ValueError(
            f"{folder.path} is finished, with a teacher of SHA-256 {teacher['sha256']}; the cache cache.path="
            f"{settings.cache.path} is of a teacher of {cached}. Name another cache, or {redo}"
        )
    if ranks.main and (sources := summary.get("sources")):
        networks = build.networks(settings)
        for file in changed_sources(sources, user_sources(networks.distiller, networks.teacher)):
            log.warning("%s has changed since this run; its results are of the earlier source; %s", file, redo)
    return {**summary, "was_finished": True}


def _lock(folder: RunFolder, config: dict[str, Any], ranks: Dist, wait: bool) -> None:
    """Rank 0 locks the folder; the others poll, so that no collective call times out."""
    printed = False
    while True:
        locked = None
        try:
            if ranks.main:
                folder.open(config)
        except RunLockedError as error:
            locked = error
            if wait and not printed:
                print(f"waiting: {error}", flush=True)
            printed = True
        if ranks.max(int(locked is not None)) == [0]:
            return
        if not wait:
            raise locked or RunLockedError(f"{folder.path} is being written by another process")


def _check_cache_folder(settings: RunConfig, ranks: Dist) -> None:
    """Raises ValueError, before a teacher is trained, if `cache.path` cannot be created."""
    if settings.cache.path is not None and ranks.main:
        try:
            Path(settings.cache.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"cache.path={settings.cache.path}: no such folder can be made ({error.strerror})"
            ) from error


def _check_split(settings: RunConfig, data: Dataset, ranks: Dist) -> None:
    images, batch = len(data.train), settings.trainer.batch_size
    tail = images % batch or batch
    if min(batch, tail) < ranks.world:
        raise ValueError(
            f"trainer.batch_size={batch}: the last batch of an epoch of {images} images has {min(batch, tail)}, "
            f"too few for {ranks.world} ranks; choose another batch size"
        )
    if _smallest_micro_batch(settings, images, batch, ranks) == 1 and not (
        settings.trainer.sync_bn and ranks.world > 1
    ):
        _check_single_image(settings, images, ranks)


def _smallest_micro_batch(settings: RunConfig, images: int, batch: int, ranks: Dist) -> int:
    """The size of an epoch's smallest micro-batch: images of a rank in one gradient accumulation step."""
    counts = [size // ranks.world for size in (min(batch, images), images % batch) if size]
    return min(count // (min(settings.trainer.accumulate, count) or 1) for count in counts)


def _check_single_image(settings: RunConfig, images: int, ranks: Dist) -> None:
    """Raises ValueError if the student cannot train on a single image: batch norm of 1×1 maps has one value per channel."""
    data, batch = settings.data, settings.trainer.batch_size
    student = build.network("model", settings.model, settings.seed).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            student(torch.zeros(1, data["channels"], data["size"], data["size"]))
    except (ValueError, RuntimeError) as error:
        sizes = (size for step in range(1, batch + 1) for size in (batch + step, batch - step) if size > 1)
        nearest = next((size for size in sizes if _smallest_micro_batch(settings, images, size, ranks) > 1), 0)
        advice = f"trainer.batch_size={nearest} leaves none" if nearest >= ranks.world else "choose another one"
        raise ValueError(
            f"trainer.batch_size={batch}: in the last batch of an epoch of {images} images a rank (or a gradient accumulation "
            f"step) has a single image, on which {settings.model['name']} cannot be trained ({error}); {advice}"
        ) from error


def _train(
    settings: RunConfig, networks: build.Networks, ranks: Dist, data: Dataset, folder: RunFolder, teacher: Teacher
) -> dict[str, Any]:
    config = asdict(settings)
    loader = build.loader(settings, ranks, data, "train", teacher.views)
    build.init_memory(settings, networks.distiller, len(data.train))
    trainer = build.trainer(settings, networks.distiller, teacher, loader, ranks)
    evaluated = "val" if data.val is not None else "test"
    about = {  # must be equal in every start of the run, by rank 0
        "config": run_key(config),
        "teacher": {"sha256": teacher.about["sha256"]} if teacher.about else None,
        "data": {"sha256": data.fingerprint} if ranks.main else None,
    }
    info = RunInfo(folder.path, folder.path.name, "/".join(folder.path.parts[-4:-1]), config)
    draw = None
    if settings.trainer.heatmaps and ranks.main and settings.tracker:
        draw = _drawing(trainer, teacher, ranks, data)
    made_with = provenance(ranks.device, ranks.world)
    sources = user_sources(networks.distiller, networks.teacher)
    profile = folder.path / "profile" if settings.trainer.profile and ranks.main else None
    if ranks.main:
        print(_images(data))
    with RunRecord(trainer, info, build.trackers(settings), about=about, sources=sources, draw=draw) as record:
        last = Metrics(**record.last) if record.last else None
        evaluation = build.loader(settings, ranks, data, evaluated)
        loop = Loop(trainer, evaluation, record, last=last, split=evaluated, chance=100 / data.num_classes)
        last = loop.run(profile)
    if trainer.average is not None:
        trainer.average.adopt()
    test = last
    if evaluated == "val":
        batches = build.loader(settings, ranks, data, "test").epoch(0)
        test = evaluate(networks.distiller.student, batches, ranks, settings.trainer.precision)
    _check_weights(networks.distiller.student)
    summary = {
        "finished": True,
        "folder": str(folder.path),
        "test": asdict(test),
        "evaluated_on": evaluated,
        "last": asdict(last),
        "teacher": teacher.about,
        "data": {"sha256": data.fingerprint, "images": len(data.train), "classes": data.classes},
        **_training_summary(settings, trainer),
        **made_with,
        "sources": sources,
        "config": config,
    }
    if ranks.main:
        _write(folder, networks.distiller.student, _metadata(settings, data, test), summary)
    ranks.barrier()
    return summary


def _images(data: Dataset) -> str:
    held_out = f"{len(data.val):,} held-out and " if data.val is not None else ""
    return f"{data.name}: {len(data.train):,} training, {held_out}{len(data.test):,} test images of {data.num_classes} classes"


def _check_weights(student: nn.Module) -> None:
    """Raises FloatingPointError for a trained network that is not finite: the last step may have made it so."""
    for name, value in student.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FloatingPointError(
                f"the trained student is not finite: {name}; a lower optim.lr or trainer.clip_grad_norm=2 may prevent it"
            )


def _write(folder: RunFolder, student: nn.Module, metadata: dict[str, str], summary: dict[str, Any]) -> None:
    """Write the weights, then the summary: a run with a summary is finished."""
    save_weights(folder.path / STUDENT, student, metadata)
    summary["student"]["sha256"] = sha256_of(folder.path / STUDENT)
    write_whole(folder.path / SUMMARY, json.dumps(summary, indent=1).encode())


def _drawing(trainer: Trainer, teacher: Teacher, ranks: Dist, data: Dataset) -> Callable[[], dict[str, Tensor]]:
    """A function that draws heat maps of both networks on eight test images, the student with the weights that are evaluated."""
    first = torch.arange(min(8, len(data.test)), device=ranks.device)
    images = data.test.render(first, torch.full_like(first, data.test.unaugmented))
    networks = {"student": (trainer.distiller.student, images)}
    if teacher.live is not None:
        networks["teacher"] = (teacher.live.model, teacher.live.convert(images))
    numbers = data.test.labels[: len(images)].tolist()
    labels = [data.classes[number] if data.classes else f"class {number}" for number in numbers]

    def draw() -> dict[str, Tensor]:
        with nullcontext() if trainer.average is None else trainer.average.adopted():
            return heatmaps(images, networks, Normalization(data.mean, data.std), labels=labels)

    return draw


def _training_summary(settings: RunConfig, trainer: Trainer) -> dict[str, Any]:
    """The part of the summary about the training."""
    progress = trainer.progress
    student = {"name": settings.model["name"], "parameters": build.count_parameters(trainer.distiller.student)}
    if settings.trainer.ema is not None:
        student["weights"] = f"exponential moving average over the steps, decay {settings.trainer.ema}"
    return {
        "best": {"top1": progress.best_top1, "epoch": progress.best_epoch},
        "student": student,
        "seeds": {"run": settings.seed, "teacher": settings.teacher.seed},
        "steps": progress.step,
        "compiled": bool(trainer.forward.chosen),
        "skipped_steps": progress.skipped,
        "seconds": round(progress.seconds, 2),
    }


def _metadata(settings: RunConfig, data: Dataset, test: Metrics) -> dict[str, str]:
    """The metadata of the student's weights file."""
    metadata = {
        "arch": settings.model["name"],
        "dataset": data.name,
        "mean": ",".join(str(v) for v in data.mean),
        "std": ",".join(str(v) for v in data.std),
        "test_accuracy": f"{test.top1 / 100:.4f}",
    }
    return metadata if settings.trainer.ema is None else metadata | {"ema": str(settings.trainer.ema)}
