"""One run from start to finish: check, data, teacher and its summaries, training, results."""

import json
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
from nst.files import sha256_of, write_whole
from nst.models.weights import save_weights
from nst.precision import check_precision
from nst.runs.folder import STUDENT, SUMMARY, RunFolder, RunLockedError, identity, run_folder
from nst.runs.heatmaps import heatmaps
from nst.runs.provenance import provenance
from nst.runs.prune import noted
from nst.runs.record import RunRecord
from nst.runs.teacher import TeacherSide, teacher_run
from nst.runs.teacher_cache import cache_stands_in, teacher_side
from nst.runs.trackers import RunInfo
from nst.teacher import Normalization, Prefetch
from nst.training.evaluate import Metrics, evaluate
from nst.training.loop import Loop
from nst.training.ranks import Ranks
from nst.training.trainer import Trainer


def distil(settings: RunConfig, here: Ranks, data: Dataset | None = None, wait: bool = False) -> dict[str, Any]:
    """Train the student of `settings`; first its teacher, if that has no weights yet.

    Args:
        data: if it is already in memory.
        wait: if another process has this run, wait for its result.

    Returns:
        The run's summary; with `was_finished` where it was done before.

    Raises:
        ValueError: what makes the run impossible.
        Pruned: now or in an earlier start, see `trainer.prune_after`.
    """
    # check
    config = asdict(settings)
    for key, value in (("trainer", settings.trainer.precision), ("teacher", settings.teacher.precision)):
        check_precision(f"{key}.precision", value, here.device)
    if settings.teacher.model is not None and settings.teacher.weights is None:
        check_precision("teacher.recipe.trainer.precision", settings.teacher.recipe.trainer.precision, here.device)
    folder = RunFolder(run_folder(config))
    networks = None if _is_finished(folder, here) else build.networks(settings)
    if settings.teacher.weights is not None and not Path(settings.teacher.weights).is_file():
        raise ValueError(f"teacher.weights={settings.teacher.weights}: no such file")
    _check_cache_folder(settings, here)
    # data
    data = data or build.dataset(settings)
    if networks is None:
        return _finished(settings, folder, data)
    if settings.trainer.prune_after is not None and (pruned := noted(folder.path)) is not None:
        raise pruned
    _check_split(settings, data, here)
    # teacher and its summaries
    teacher = have_teacher(settings, networks, here, data)
    # train, write
    _lock(folder, config, here, wait)
    try:
        if _is_finished(folder, here):  # by another process, meanwhile
            return _finished(settings, folder, data)
        return _train(settings, networks, here, data, folder, teacher)
    finally:
        folder.close()


def have_teacher(settings: RunConfig, networks: build.Networks, here: Ranks, data: Dataset) -> TeacherSide:
    """The source of summaries; a teacher without weights is trained first, a missing cache written.

    Raises:
        ValueError: as `teacher_side`, or from the run that trains the teacher.
    """
    weights = settings.teacher.weights
    if weights is None and settings.teacher.model is not None:
        trained = RunFolder(run_folder(asdict(teacher_run(settings))))
        if not cache_stands_in(settings) or _is_finished(trained, here):
            weights = _trained_teacher(settings, here, data)
    return teacher_side(settings, networks, here, data, weights)


def write_teacher_cache(settings: RunConfig, here: Ranks, data: Dataset | None = None) -> TeacherSide:
    """Write the teacher cache for these settings.

    Raises:
        ValueError: nothing to cache, a cache that does not match, a disk that is too small, a damaged file.
    """
    if settings.teacher.model is None:
        raise ValueError("no term of the loss needs a teacher; choose for example loss=[kd,at,nst_poly]")
    return have_teacher(settings, build.networks(settings), here, data or build.dataset(settings))


def _trained_teacher(settings: RunConfig, here: Ranks, data: Dataset) -> str:
    """The weights file of a teacher without `teacher.weights`: trains it unless that run is finished."""
    own = teacher_run(settings)
    folder = run_folder(asdict(own))
    if here.main and not (folder / SUMMARY).is_file():
        print(
            f"teacher {own.model['name']} has no weights yet: it is trained first, {own.trainer.epochs} epochs by "
            f"teacher.recipe, and kept in {folder}"
        )
    return str(Path(distil(own, here, data, wait=True)["folder"]) / STUDENT)


def _is_finished(folder: RunFolder, here: Ranks) -> bool:
    """Rank 0 decides for all: another process may finish the run at any moment."""
    return here.max(int(here.main and folder.summary() is not None)) == [1]


def _finished(settings: RunConfig, folder: RunFolder, data: Dataset) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        ValueError: its data or teacher weights differ from the settings, or its student's file has changed.
    """
    done = folder.summary()
    assert done is not None
    redo = f"delete {folder.path} to run it again"
    if (found := done["data"]["sha256"]) != data.fingerprint:
        raise ValueError(
            f"{folder.path} is finished, on images of fingerprint {found[:16]}…; data={data.name} now has "
            f"{data.fingerprint[:16]}…. Give the new images another data.name or outputs, or {redo}"
        )
    if (found := sha256_of(folder.path / STUDENT)) != done["student"]["sha256"]:
        raise ValueError(
            f"{folder.path / STUDENT} has SHA-256 {found}, not {done['student']['sha256']}; restore it, or {redo}"
        )
    weights, teacher = settings.teacher.weights, done["teacher"]
    if teacher is not None and weights is not None and (found := sha256_of(weights)) != teacher["sha256"]:
        raise ValueError(
            f"{folder.path} is finished, with a teacher of SHA-256 {teacher['sha256']}; {weights} now has {found}. "
            f"Give the new weights another name, or {redo}"
        )
    return {**done, "was_finished": True}


def _lock(folder: RunFolder, config: dict[str, Any], here: Ranks, wait: bool) -> None:
    """Rank 0 locks the folder; the others poll, so that no collective call lasts long."""
    told = False
    while True:
        locked = None
        try:
            if here.main:
                folder.open(config)
        except RunLockedError as error:
            locked = error
            if wait and not told:
                print(f"waiting: {error}", flush=True)
            told = True
        if here.max(int(locked is not None)) == [0]:
            return
        if not wait:
            raise locked or RunLockedError(f"{folder.path} is being written by another process")


def _check_cache_folder(settings: RunConfig, here: Ranks) -> None:
    """Raises ValueError, before a teacher is trained, if `knowledge.path` cannot be created."""
    if settings.knowledge.path is not None and here.main:
        try:
            Path(settings.knowledge.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"knowledge.path={settings.knowledge.path}: no such folder can be made ({error.strerror})"
            ) from error


def _check_split(settings: RunConfig, data: Dataset, here: Ranks) -> None:
    images, batch = len(data.train), settings.trainer.batch_size
    tail = images % batch or batch
    if min(batch, tail) < here.world:
        raise ValueError(
            f"trainer.batch_size={batch}: the last batch of an epoch of {images} images has {min(batch, tail)}, "
            f"too few for {here.world} ranks; choose another batch size"
        )
    if _smallest_part(settings, images, batch, here) == 1 and not (settings.trainer.sync_bn and here.world > 1):
        _check_single_image(settings, images, here)


def _smallest_part(settings: RunConfig, images: int, batch: int, here: Ranks) -> int:
    """The smallest number of images of a rank in any gradient accumulation step of an epoch."""
    shares = [size // here.world for size in (min(batch, images), images % batch) if size]
    return min(share // (min(settings.trainer.accumulate, share) or 1) for share in shares)


def _check_single_image(settings: RunConfig, images: int, here: Ranks) -> None:
    """Raises ValueError if the student cannot train on a single image: batch norm of 1×1 maps has one value per channel."""
    data, batch = settings.data, settings.trainer.batch_size
    student = build.network("model", settings.model, settings.seed).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            student(torch.zeros(1, data["channels"], data["size"], data["size"]))
    except (ValueError, RuntimeError) as error:
        sizes = (size for step in range(1, batch + 1) for size in (batch + step, batch - step) if size > 1)
        other = next((size for size in sizes if _smallest_part(settings, images, size, here) > 1), None)
        advice = f"trainer.batch_size={other} leaves none" if other and other >= here.world else "choose another one"
        raise ValueError(
            f"trainer.batch_size={batch}: in the last batch of an epoch of {images} images a rank (or a gradient accumulation "
            f"step) has a single image, on which {settings.model['name']} cannot be trained ({error}); {advice}"
        ) from error


def _train(
    settings: RunConfig, networks: build.Networks, here: Ranks, data: Dataset, folder: RunFolder, teacher: TeacherSide
) -> dict[str, Any]:
    config = asdict(settings)
    loader = build.loader(settings, here, data, "train", teacher.views)
    if teacher.source.prefetch_batches:
        loader = Prefetch(loader, teacher.source)
    build.allocate(settings, networks.distiller, len(data.train))
    trainer = build.trainer(settings, networks.distiller, teacher.source, loader, here)
    evaluated = "val" if data.val is not None else "test"
    about = {  # what rank 0 finds must be the same in every start of the run
        "config": identity(config),
        "teacher": {"sha256": teacher.about["sha256"]} if teacher.about else None,
        "data": {"sha256": data.fingerprint} if here.main else None,
    }
    info = RunInfo(folder.path, folder.path.name, "/".join(folder.path.parts[-4:-1]), config)
    draw = None
    if settings.trainer.heatmaps and here.main and settings.tracker:
        draw = _drawing(trainer, teacher, here, data)
    made_with = provenance(here.device, here.world)
    profile = folder.path / "profile" if settings.trainer.profile and here.main else None
    with RunRecord(trainer, info, build.trackers(settings), about=about, draw=draw) as record:
        last = Metrics(**record.last) if record.last else None
        evaluation = build.loader(settings, here, data, evaluated)
        loop = Loop(trainer, evaluation, record, last=last, split=evaluated, chance=100 / data.num_classes)
        last = loop.run(profile)
    if trainer.average is not None:
        trainer.average.adopt()
    test = last
    if evaluated == "val":
        batches = build.loader(settings, here, data, "test").epoch(0)
        test = evaluate(networks.distiller.student, batches, here, settings.trainer.precision)
    _check_weights(networks.distiller.student)
    summary = {
        "finished": True,
        "folder": str(folder.path),
        "test": asdict(test),
        "evaluated_on": evaluated,
        "last": asdict(last),
        "teacher": teacher.about,
        "data": {"sha256": data.fingerprint, "images": len(data.train), "classes": data.classes},
        **_outcome(settings, trainer),
        **made_with,
        "config": config,
    }
    if here.main:
        _write(folder, networks.distiller.student, _metadata(settings, data, test), summary)
    here.barrier()
    return summary


def _check_weights(student: nn.Module) -> None:
    """Raises FloatingPointError for a trained network that is not finite: the last step may have made it so."""
    for name, value in student.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FloatingPointError(
                f"the trained student is not finite: {name}; a lower optim.lr or trainer.clip_grad_norm=2 may prevent it"
            )


def _write(folder: RunFolder, student: nn.Module, metadata: dict[str, str], summary: dict[str, Any]) -> None:
    """The weights, then the summary, which makes the run a finished one."""
    save_weights(folder.path / STUDENT, student, metadata)
    summary["student"]["sha256"] = sha256_of(folder.path / STUDENT)
    write_whole(folder.path / SUMMARY, json.dumps(summary, indent=1).encode())


def _drawing(trainer: Trainer, teacher: TeacherSide, here: Ranks, data: Dataset) -> Callable[[], dict[str, Tensor]]:
    """What draws the heat maps of both networks on eight test images, the student's with the weights that are evaluated."""
    first = torch.arange(min(8, len(data.test)), device=here.device)
    images = data.test.render(first, torch.full_like(first, data.test.identity))
    seen = {"student": (trainer.distiller.student, images)}
    if teacher.live is not None:
        seen["teacher"] = (teacher.live.model, teacher.live.convert(images))
    numbers = data.test.labels[: len(images)].tolist()
    labels = [data.classes[number] if data.classes else f"class {number}" for number in numbers]

    def draw() -> dict[str, Tensor]:
        with nullcontext() if trainer.average is None else trainer.average.adopted():
            return heatmaps(images, seen, Normalization(data.mean, data.std), labels=labels)

    return draw


def _outcome(settings: RunConfig, trainer: Trainer) -> dict[str, Any]:
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
