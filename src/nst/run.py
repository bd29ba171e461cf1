"""A run from its first line to its last: check, data, teacher, train, write."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import profiler

from nst import build
from nst.config import RunConfig
from nst.data.batch import counted
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.distiller import seeded
from nst.evaluate import Metrics, evaluate, feature_evaluation
from nst.files import sha256_of, write_whole
from nst.layers import LOGITS
from nst.loop import Loop, Training
from nst.models.parts import NoClassifier
from nst.models.weights import load_weights, save_weights
from nst.storage.folder import BEST, STUDENT, SUMMARY, RunFolder, RunLockedError, run_folder, run_key
from nst.storage.record import Record, provenance
from nst.teacher import Teacher
from nst.teacher.prepare import cached_teacher_sha256, comes_trained, make_teacher
from nst.trial import check_batches, check_patience, try_networks


def execute(settings: RunConfig, dist: Dist, data: Dataset | None = None, wait: bool = False) -> dict[str, Any]:
    """Train the student of `settings`, first a teacher without weights; the summary, with `was_finished` if it was so before.

    `data` is the data set, if it is already in memory; `wait` for the result of another process that has locked this run.
    Raises ValueError for whatever makes the run impossible, and as `train_and_write` does.
    """
    # check
    config, trainer = asdict(settings), settings.trainer
    weights, cache = settings.teacher.weights, settings.cache.path
    for key, precision in (("trainer", trainer.precision), ("teacher", settings.teacher.precision)):
        if precision == "fp16" and dist.device.type != "cuda":
            raise ValueError(f"{key}.precision=fp16 needs a CUDA device, this run is on the CPU; bf16 runs here")
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"teacher.weights={weights}: no such file")
    if cache is not None and dist.main:
        try:
            Path(cache).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cache.path={cache}: no such folder can be made ({error.strerror})") from error
    folder = RunFolder(run_folder(config))
    if is_finished(folder, dist):
        return finished(settings, folder, data or build.dataset(settings))
    networks = build.networks(settings, dist)
    distiller = networks.distiller
    try_networks(settings, distiller, networks.teacher)
    optimization, trackers = build.optimization(settings, distiller=distiller), build.trackers(settings)
    metrics = build.metrics(settings)

    # data
    given, data = data, data or build.dataset(settings)
    dist.check_same_settings({f"images of data={data.name}": data.fingerprint})
    set_threads(trainer.threads, data, dist)
    check_patience(trainer, data.val is not None)
    check_batches(trainer, distiller, len(data.train), (data.channels, data.size, data.size), dist.world)
    evaluated = "val" if data.val is not None else "test"
    if evaluated == "val" and given is None and not folder.path.exists():
        # these are looked at only at the end: a damaged image among them would then cost the whole run
        images = build.loader(settings, dist, data, "test").epoch(0)
        for _ in counted(images, "reading the test images once", len(data.test) // dist.world):
            pass

    # teacher
    teacher = prepare_teacher(settings, networks, dist, data)
    if distiller.classifies:
        loaders = {split: build.loader(settings, dist, data, split) for split in dict.fromkeys((evaluated, "test"))}

        def evaluation(split: str, after: Callable[[], object] = bool) -> Metrics:
            batches = loaders[split].epoch(0)
            return evaluate(distiller.student, batches, dist, trainer.precision, metrics=metrics, after=after)

    elif teacher.live is None:
        raise ValueError(f"cache.path={cache}: a cache has no targets of the held-out images; name teacher.weights")
    else:
        evaluation = feature_evaluation(distiller, teacher.live, data, dist, trainer)

    # train and write
    lock(folder, config, dist, wait)
    try:
        if is_finished(folder, dist):  # by another process in the meantime
            return finished(settings, folder, data)
        with seeded(settings.seed):
            distiller.init_memory(len(data.train))
        loader = build.loader(settings, dist, data, "train", teacher.views)
        training = Training(distiller, loader, **optimization, settings=trainer, dist=dist, seed=settings.seed)
        if dist.main:
            print(data.describe())
        values = {"mean": ",".join(map(str, data.mean)), "std": ",".join(map(str, data.std)), "size": str(data.size)}
        values |= {} if trainer.ema is None else {"ema": str(trainer.ema)}
        record = Record(
            training,
            folder.path,
            config,
            trackers,
            about={
                "config": run_key(config),
                "teacher": {"sha256": teacher.about["sha256"]} if teacher.about else None,
                "data": {"sha256": data.fingerprint},
            },
            metadata={"arch": settings.model["name"], "dataset": data.name, **values},
        )
        of_data = {"sha256": data.fingerprint, "images": len(data.train), "classes": data.classes}
        seeds, chance = {"run": settings.seed, "teacher": settings.teacher.seed}, 100 / data.num_classes
        facts = {"teacher": teacher.about, "data": of_data, "seeds": seeds, "config": config}
        return train_and_write(Loop(training, teacher, evaluation, record, split=evaluated, chance=chance), facts)
    finally:
        folder.close()


def train_and_write(loop: Loop, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Train to the end; write the weights, then the summary with these facts, which says that the run is finished, and return it.

    Raises:
        FloatingPointError: the loss or the trained student is not finite; names the step and terms, or the layer.
        Interrupted: stopped by a signal, saved.
    """
    training, evaluation, record = loop.training, loop.evaluation, loop.record
    settings, dist, student, folder = training.settings, training.dist, training.distiller.student, record.folder
    made_with, trace = provenance(dist.device, dist.world), nullcontext()
    if settings.profile and dist.main:  # for TensorBoard or https://ui.perfetto.dev; the first steps are slower
        steps, write = profiler.schedule(wait=3, warmup=2, active=5, repeat=1), profiler.tensorboard_trace_handler
        trace = profiler.profile(schedule=steps, on_trace_ready=write(str(folder / "profile")), record_shapes=True)
        loop.after_step = trace.step
    with record, trace:
        last = loop.run()
        if training.average is not None:
            training.average.adopt()
        for key, value in student.state_dict().items():  # the last step may have made it so
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise FloatingPointError(f"the trained student is not finite: {key}; try trainer.clip_grad_norm=2")

    progress = training.progress
    # the test images are looked at once, with the last and with the best weights
    test = test_best = last if loop.split == "test" else evaluation("test")
    if progress.best_epoch != progress.epoch:
        weights = {key: value.clone() for key, value in student.state_dict().items()}
        load_weights(student, folder / BEST)
        test_best = evaluation("test")
        student.load_state_dict(weights)
    of_student: dict[str, Any] = {"name": record.metadata["arch"], "parameters": build.count_parameters(student)}
    if left_out := [path for path, module in student.named_modules() if isinstance(module, NoClassifier)]:
        of_student["left_out"] = left_out
    if dist.main:
        measured = ("accuracy", test.top1 / 100) if test.top1 is not None else (test.measure, test.value)
        metadata = record.metadata | {f"test_{measured[0]}": f"{measured[1]:.4f}"}
        save_weights(folder / STUDENT, student, metadata)
        of_student["sha256"] = sha256_of(folder / STUDENT)
    summary = {
        "finished": True,
        "folder": str(folder),
        "test": test.as_dict(),
        "test_best": test_best.as_dict(),
        "evaluated_on": loop.split,
        "last": last.as_dict(),
        "best": {last.measure: progress.best, "epoch": progress.best_epoch},
        "student": of_student,
        "steps": progress.step,
        "stopped_early": progress.step < training.steps,
        "compiled": training.compiles is True,
        "seconds": round(progress.seconds, 2),
        **facts,
        **made_with,
    }
    if dist.main:
        write_whole(folder / SUMMARY, json.dumps(summary, indent=1).encode())
    dist.barrier()
    return summary


def prepare_teacher(settings: RunConfig, networks: build.Networks, dist: Dist, data: Dataset) -> Teacher:
    """The teacher of a run; one without weights is trained first, a missing cache is written. Raises as `make_teacher`."""
    weights = settings.teacher.weights
    network, output = networks.teacher, networks.teacher_shapes.get(LOGITS, ())
    if network is not None and not comes_trained(settings, network, output, data.num_classes):
        if not data.labeled:
            raise ValueError(f"data={data.name}: without labels no teacher can be trained: name its teacher.weights")
        training = build.teacher_run(settings)
        folder = RunFolder(run_folder(asdict(training)))
        known = is_finished(folder, dist)
        if known or not cached_teacher_sha256(settings.cache.path):
            if dist.main and not known:
                print(f"teacher {training.model['name']} is trained first, and kept in {folder.path}")
            weights = str(Path(execute(training, dist, data, wait=True)["folder"]) / STUDENT)
    return make_teacher(settings, networks, weights, dist, data)


def write_teacher_cache(settings: RunConfig, dist: Dist, data: Dataset | None = None) -> Teacher:
    """Write the teacher cache for these settings. Raises ValueError as `prepare_teacher`, and where there is nothing to cache."""
    if settings.teacher.model is None:
        raise ValueError("no term of the loss needs a teacher; choose for example loss=[kd,at,nst_poly]")
    networks, data = build.networks(settings, dist), data or build.dataset(settings)
    dist.check_same_settings({f"images of data={data.name}": data.fingerprint})
    return prepare_teacher(settings, networks, dist, data)


def is_finished(folder: RunFolder, dist: Dist) -> bool:
    """Rank 0 decides for all: another process may finish the run at any moment."""
    return dist.max(int(dist.main and folder.summary() is not None)) == [1]


def finished(settings: RunConfig, folder: RunFolder, data: Dataset) -> dict[str, Any]:
    """The summary of a finished run. Raises ValueError if its images, its student's file or the named cache have changed."""
    summary = folder.summary()
    assert summary is not None
    student, cache, teacher = folder.path / STUDENT, settings.cache.path, (summary["teacher"] or {}).get("sha256")
    for what, recorded, found in (
        (student, summary["student"]["sha256"], sha256_of(student)),
        (f"the teacher in {cache}", teacher, cached_teacher_sha256(cache) or teacher),
        (f"data={data.name}", summary["data"]["sha256"], data.fingerprint),
    ):
        if found != recorded:
            hint = "; other images need another name: data.name=NAME" if found == data.fingerprint else ""
            raise ValueError(f"{folder.path} is finished, but {what} has changed: restore it, or delete the run{hint}")
    return {**summary, "was_finished": True}


def lock(folder: RunFolder, config: dict[str, Any], dist: Dist, wait: bool) -> None:
    """Rank 0 locks the folder; the others poll, so that no collective call times out. Raises RunLockedError unless `wait`."""
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


def set_threads(threads: int | None, data: Dataset, dist: Dist) -> None:
    """Threads of a CPU's operations: as asked for, else by `OMP_NUM_THREADS`, else one for images of under 16 pixels a side, whose
    steps several hardly speed up. Never by the machine's load: another number rounds otherwise.
    """
    if threads is None and dist.device.type == "cpu" and data.size < 16 and "OMP_NUM_THREADS" not in os.environ:
        threads = 1
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
        if dist.main:
            print(f"threads: {threads} (trainer.threads)")
