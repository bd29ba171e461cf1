"""A run from its first line to its last: check, data, teacher, train, write."""

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, profiler

from nst import build
from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.dist import Dist, check_precision
from nst.evaluate import Metrics, evaluate, feature_evaluation
from nst.files import sha256_of, write_whole
from nst.layers import LOGITS
from nst.loop import Loop, Training
from nst.models.parts import NoClassifier
from nst.models.weights import load_weights, save_weights
from nst.report.heatmaps import heatmaps
from nst.storage.folder import BEST, STUDENT, SUMMARY, RunFolder, RunLockedError, run_folder, run_key
from nst.storage.record import Record, provenance
from nst.storage.trackers import RunInfo
from nst.teacher import Normalization, Teacher
from nst.teacher.prepare import cached_teacher_sha256, comes_trained, make_teacher
from nst.trial import check_data, try_networks


def execute(settings: RunConfig, dist: Dist, data: Dataset | None = None, wait: bool = False) -> dict[str, Any]:
    """Train the student of `settings`; first its teacher, if that has no weights yet.

    Args:
        data: the data set, if it is already in memory.
        wait: if another process has locked this run, wait for its result.

    Returns:
        The run's summary; with `was_finished` if it was finished before.

    Raises:
        ValueError: for whatever makes the run impossible.
        FloatingPointError: the loss was not finite; names the step, the terms and the last good checkpoint.
        Interrupted: stopped by a signal, saved.
    """
    # check
    config, name = asdict(settings), settings.model["name"]
    for key, precision in (("trainer", settings.trainer.precision), ("teacher", settings.teacher.precision)):
        check_precision(f"{key}.precision", precision, dist.device)
    check_files(settings, dist)
    folder = RunFolder(run_folder(config))
    if is_finished(folder, dist):
        return finished(settings, folder, data or build.dataset(settings))
    networks = build.networks(settings, dist)
    distiller = networks.distiller
    try_networks(settings, distiller, networks.teacher)
    optimization, trackers = build.optimization(settings, distiller=distiller), build.trackers(settings)
    metrics = build.metrics(settings)

    # data
    data = data or build.dataset(settings)
    check_same_data(data, dist)
    set_threads(settings.trainer.threads, data, dist)
    check_data(settings, distiller, data, dist.world)
    evaluated = "val" if data.val is not None else "test"

    # teacher
    teacher = prepare_teacher(settings, networks, dist, data)
    if distiller.classifies:
        loaders = {split: build.loader(settings, dist, data, split) for split in dict.fromkeys((evaluated, "test"))}
        precision = settings.trainer.precision

        def evaluation(split: str, after: Callable[[], object] = bool) -> Metrics:
            batches = loaders[split].epoch(0)
            return evaluate(distiller.student, batches, dist, precision, metrics=metrics, after=after)

    elif teacher.live is None:
        raise ValueError(
            f"cache.path={settings.cache.path}: the terms are evaluated on held-out images, of which a cache has no targets: name teacher.weights"
        )
    else:
        evaluation = feature_evaluation(distiller, teacher.live, data, dist, settings.trainer)

    # train
    lock(folder, config, dist, wait)
    try:
        if is_finished(folder, dist):  # by another process in the meantime
            return finished(settings, folder, data)
        build.init_memory(settings, distiller, len(data.train))
        training = Training(
            distiller,
            build.loader(settings, dist, data, "train", teacher.views),
            **optimization,
            settings=settings.trainer,
            dist=dist,
            seed=settings.seed,
        )
        about = {  # must be equal in every start of the run, by rank 0
            "config": run_key(config),
            "teacher": {"sha256": teacher.about["sha256"]} if teacher.about else None,
            "data": {"sha256": data.fingerprint} if dist.main else None,
        }
        metadata = {
            "arch": name,
            "dataset": data.name,
            "mean": ",".join(str(v) for v in data.mean),
            "std": ",".join(str(v) for v in data.std),
            "size": str(data.size),
        } | ({} if settings.trainer.ema is None else {"ema": str(settings.trainer.ema)})
        info = RunInfo(folder.path, folder.path.name, "/".join(folder.path.parts[-4:-1]), config)
        draw = drawing(training, teacher, data) if settings.trainer.heatmaps and dist.main and trackers else None
        made_with = provenance(dist.device, dist.world)
        if dist.main:
            print(data.describe())
        with (
            Record(training, info, trackers, about=about, metadata=metadata, draw=draw) as record,
            tracing(folder.path / "profile") if settings.trainer.profile and dist.main else nullcontext() as trace,
        ):
            after_step, chance = trace.step if trace is not None else bool, 100 / data.num_classes
            loop = Loop(training, teacher, evaluation, record, split=evaluated, chance=chance, after_step=after_step)
            last = loop.run()

        # write: the weights, then the summary, which says that the run is finished
        student, progress = distiller.student, training.progress
        if training.average is not None:
            training.average.adopt()
        for key, value in student.state_dict().items():  # the last step may have made it so
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise FloatingPointError(
                    f"the trained student is not finite: {key}; a lower optim.lr or trainer.clip_grad_norm=2 may prevent it"
                )
        test, weights = last, {key: value.clone() for key, value in student.state_dict().items()}
        if evaluated == "val":  # the test images are looked at once, with the last and with the best weights
            test = evaluation("test")
        load_weights(student, folder.path / BEST)
        test_best = evaluation("test")
        student.load_state_dict(weights)
        about_student: dict[str, Any] = {"name": name, "parameters": build.count_parameters(student)}
        if left_out := [path for path, module in student.named_modules() if isinstance(module, NoClassifier)]:
            about_student["left_out"] = left_out
        if settings.trainer.ema is not None:
            average = f"exponential moving average over the steps, decay {settings.trainer.ema}"
            about_student["weights"] = average
        if dist.main:
            kept = (
                {"test_accuracy": f"{test.top1 / 100:.4f}"}
                if test.top1 is not None
                else {f"test_{test.measure}": f"{test.value:.4f}"}
            )
            save_weights(folder.path / STUDENT, student, metadata | kept)
            about_student["sha256"] = sha256_of(folder.path / STUDENT)
        summary = {
            "finished": True,
            "folder": str(folder.path),
            "test": test.as_dict(),
            "test_best": test_best.as_dict(),
            "evaluated_on": evaluated,
            "last": last.as_dict(),
            "best": {last.measure: progress.best, "epoch": progress.best_epoch},
            "teacher": teacher.about,
            "data": {"sha256": data.fingerprint, "images": len(data.train), "classes": data.classes},
            "student": about_student,
            "seeds": {"run": settings.seed, "teacher": settings.teacher.seed},
            "steps": progress.step,
            "stopped_early": progress.step < training.steps,
            "compiled": training.compiles is True,
            "seconds": round(progress.seconds, 2),
            **made_with,
            "config": config,
        }
        if dist.main:
            write_whole(folder.path / SUMMARY, json.dumps(summary, indent=1).encode())
        dist.barrier()
        return summary
    finally:
        folder.close()


def prepare_teacher(settings: RunConfig, networks: build.Networks, dist: Dist, data: Dataset) -> Teacher:
    """The teacher of a run; one without weights is trained first, a missing cache is written.

    Raises:
        ValueError: as `make_teacher`, or from the run that trains the teacher.
    """
    weights = settings.teacher.weights
    network, output = networks.teacher, networks.teacher_shapes.get(LOGITS, ())
    if network is not None and not comes_trained(settings, network, output, data.num_classes):
        if not data.labeled:
            raise ValueError(
                f"data={data.name}: its images have no labels, on which a teacher could be trained: name its teacher.weights, or use published "
                "ones (teacher.model.pretrained=true)"
            )
        training = build.teacher_run(settings)
        folder = RunFolder(run_folder(asdict(training)))
        known = is_finished(folder, dist)
        if known or not cached_teacher_sha256(settings.cache.path):
            if dist.main and not known:
                print(
                    f"teacher {training.model['name']} has no weights yet: it is trained first, {training.trainer.epochs} epochs "
                    f"by teacher.train, and kept in {folder.path}"
                )
            weights = str(Path(execute(training, dist, data, wait=True)["folder"]) / STUDENT)
    return make_teacher(settings, networks, weights, dist, data)


def write_teacher_cache(settings: RunConfig, dist: Dist, data: Dataset | None = None) -> Teacher:
    """Write the teacher cache for these settings.

    Raises:
        ValueError: nothing to cache, a cache that does not match, a disk that is too small, a damaged file.
    """
    if settings.teacher.model is None:
        raise ValueError("no term of the loss needs a teacher; choose for example loss=[kd,at,nst_poly]")
    networks, data = build.networks(settings, dist), data or build.dataset(settings)
    check_same_data(data, dist)
    return prepare_teacher(settings, networks, dist, data)


def is_finished(folder: RunFolder, dist: Dist) -> bool:
    """Rank 0 decides for all: another process may finish the run at any moment."""
    return dist.max(int(dist.main and folder.summary() is not None)) == [1]


def finished(settings: RunConfig, folder: RunFolder, data: Dataset) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        ValueError: its images or the named teacher cache differ from the run's, or its student's file has changed.
    """
    summary = folder.summary()
    assert summary is not None
    student, cache = folder.path / STUDENT, settings.cache.path
    files: list[tuple[str, Any, str, str]] = [("student", student, summary["student"]["sha256"], sha256_of(student))]
    if (teacher := summary["teacher"]) is not None:
        files.append(("teacher", cache, teacher["sha256"], cached_teacher_sha256(cache) or teacher["sha256"]))
    files.append(("data set", f"data={data.name}", summary["data"]["sha256"], data.fingerprint))
    for what, file, recorded, found in files:
        if found != recorded:
            raise ValueError(
                f"{folder.path} is finished, with a {what} of SHA-256 {recorded}; {file} now has {found}. Restore it, give the new one "
                f"another name, or delete {folder.path} to run it again"
            )
    return {**summary, "was_finished": True}


def lock(folder: RunFolder, config: dict[str, Any], dist: Dist, wait: bool) -> None:
    """Rank 0 locks the folder; the others poll, so that no collective call times out.

    Raises:
        RunLockedError: another process has it, and `wait` is false.
    """
    printed = False
    while True:
        locked = None
        try:
            if dist.main:
                folder.open(config)
        except RunLockedError as error:
            locked = error
            if wait and not printed:
                print(f"waiting: {error}", flush=True)
            printed = True
        if dist.max(int(locked is not None)) == [0]:
            return
        if not wait:
            raise locked or RunLockedError(f"{folder.path} is being written by another process")


def check_files(settings: RunConfig, dist: Dist) -> None:
    """Raises ValueError, before any work, for a teacher's weights that are not there and a cache's folder that cannot be made."""
    if settings.teacher.weights is not None and not Path(settings.teacher.weights).is_file():
        raise ValueError(f"teacher.weights={settings.teacher.weights}: no such file")
    if settings.cache.path is not None and dist.main:
        try:
            Path(settings.cache.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"cache.path={settings.cache.path}: no such folder can be made ({error.strerror})"
            ) from error


def set_threads(threads: int | None, data: Dataset, dist: Dist) -> None:
    """Threads of a CPU's operations: as many as are asked for, else as `OMP_NUM_THREADS` says, else one for images of under 16
    pixels a side, whose steps several threads hardly speed up and a busy core stalls. Never by the load of the machine: another
    number of threads rounds otherwise.
    """
    if threads is None and dist.device.type == "cpu" and data.size < 16 and "OMP_NUM_THREADS" not in os.environ:
        threads = 1
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
        if dist.main:
            print(f"threads: {threads} (trainer.threads)")


def check_same_data(data: Dataset, dist: Dist) -> None:
    """Raises ValueError, on every rank, where one has other images or labels than rank 0."""
    if dist.world == 1:
        return
    first, *others = dist.gather(int(data.fingerprint[:12], 16))  # 48 bits, which float64 holds
    for rank, other in enumerate(others, 1):
        if other != first:
            raise ValueError(
                f"data={data.name}: rank {rank} has other images or labels than rank 0. All machines need the same files in "
                "data.root; a data set of your own must give the same images in every process: use a generator with a fixed seed"
            )


def tracing(folder: Path) -> profiler.profile:
    """A profiler that writes a trace of five steps into `folder`, for TensorBoard or https://ui.perfetto.dev."""
    steps = profiler.schedule(wait=3, warmup=2, active=5, repeat=1)  # the first steps are slower than the rest
    write = profiler.tensorboard_trace_handler(str(folder))
    return profiler.profile(schedule=steps, on_trace_ready=write, record_shapes=True)


def drawing(training: Training, teacher: Teacher, data: Dataset) -> Callable[[], dict[str, Tensor]]:
    """A function that draws heat maps of both networks on eight test images, the student with the weights that are evaluated."""
    first = torch.arange(min(8, len(data.test)), device=training.dist.device)
    images = data.test.render(first, torch.full_like(first, data.test.unaugmented))
    networks = {"student": (training.distiller.student, images)}
    if teacher.live is not None:
        networks["teacher"] = (teacher.live.model, images)
    numbers = data.test.labels[: len(images)].tolist()
    labels = (
        [data.classes[number] if data.classes else f"class {number}" for number in numbers] if data.labeled else None
    )

    def draw() -> dict[str, Tensor]:
        with training.averaged():
            return heatmaps(images, networks, Normalization(tuple(data.mean), tuple(data.std)), labels=labels)

    return draw
