"""One run, start to finish: check, build, have a teacher, train, write down what came out."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nst import build
from nst.commands.tables import balance_table, dry_run_tables, result_table
from nst.config import EvaluateConfig, RunConfig
from nst.data.dataset import Dataset
from nst.files import sha256_of, write_whole
from nst.models.weights import load_weights, save_weights
from nst.runs.folder import STUDENT, RunFolder, RunLockedError, identity, run_folder
from nst.runs.heatmaps import heatmaps
from nst.runs.provenance import provenance
from nst.runs.prune import Pruned, noted
from nst.runs.teacher import TeacherOutput, Teaching, expected_normalization, teaching
from nst.teacher import LiveTeacher, Normalization, Prefetch
from nst.training.evaluate import Metrics, evaluate
from nst.training.gradients import pulls
from nst.training.loop import Fit
from nst.training.ranks import Ranks, ranks
from nst.training.trainer import Trainer

BALANCE_BATCHES = 8  # that gradients are averaged over


def run(cfg: DictConfig) -> dict[str, Any]:
    """Do what a composed configuration says, and print the result.

    Returns:
        The run's summary (also in `summary.json`); empty for a dry run; of a pruned run only its `last` accuracy.

    Raises:
        ValueError: a setting, file or result that makes the run impossible; raised before any work where it can be.
        Interrupted: stopped by a signal, saved.
    """
    settings = build.settings(cfg)
    if settings.dry_run:
        dry_run_tables(settings, build.networks(settings))
        return {}
    with ranks(settings.trainer.device) as here:
        try:
            summary = distil(settings, here)
        except Pruned as pruned:
            if here.main:
                print(pruned)
            return {"pruned": True, "last": {"top1": pruned.best}}
        if here.main:
            result_table(settings, summary)
        return summary


def distil(settings: RunConfig, here: Ranks, data: Dataset | None = None, wait: bool = False) -> dict[str, Any]:
    """Train the student of `settings`, and its teacher first where its weights are neither given nor kept.

    Args:
        data: when it is already in memory.
        wait: where another process is at this very run, wait for its result.

    Raises:
        Pruned: now or in an earlier start, see `trainer.prune_after`.
    """
    config = asdict(settings)
    folder = RunFolder(run_folder(config))
    done = folder.summary() if here.main else None
    if here.max(int(done is not None)) == [1]:  # another process may finish it at any moment: rank 0 has looked for all
        done = done or folder.summary()
        assert done is not None
        _check_teacher(settings, done)
        return {**done, "was_finished": True}
    if settings.trainer.prune_after is not None and (pruned := noted(folder.path)) is not None:
        raise pruned
    networks = build.networks(settings)
    if settings.teacher.weights is not None and not Path(settings.teacher.weights).is_file():
        raise ValueError(f"teacher.weights={settings.teacher.weights}: no such file")
    data = data or build.dataset(settings)
    _check_split(settings, data, here)
    source = teaching(settings, networks, here, data, partial(_trained, here, data))
    _hold(folder, config, here, wait)
    try:
        if (done := folder.summary()) is not None:  # by another process, meanwhile
            return {**done, "was_finished": True}
        return _train(settings, networks, here, data, folder, source)
    finally:
        folder.close()


def _trained(here: Ranks, data: Dataset, settings: RunConfig) -> str:
    """The weights file of a teacher's run, done now where it is not done yet."""
    folder = run_folder(asdict(settings))
    if here.main and not (folder / "summary.json").is_file():
        name, epochs = settings.model["name"], settings.trainer.epochs
        print(
            f"teacher {name} has no weights yet: it is trained first, {epochs} epochs by teacher.recipe, and kept in {folder}"
        )
    return str(Path(distil(settings, here, data, wait=True)["folder"]) / STUDENT)


def store_knowledge(cfg: DictConfig) -> None:
    """Fill the store that a run with these settings would read, then compare all of it with its checksums.

    Raises:
        ValueError: nothing to store, a store of something else, a disk too small, damage.
    """
    settings = build.settings(cfg)
    if settings.teacher.model is None:
        raise ValueError("no term of the loss asks for a teacher's knowledge; choose for example loss=[kd,at,nst_poly]")
    networks, data = build.networks(settings), build.dataset(settings)
    with ranks(settings.trainer.device) as here:
        store = teaching(settings, networks, here, data, partial(_trained, here, data)).store
        if here.main and store is not None:
            store.check_all()
            print(f"{store.folder}: {len(store.state)} arrays, complete and as their checksums say")


def show_balance(cfg: DictConfig) -> None:
    """Print how hard each term pulls at the student before the run and, where it is finished, after it: see `nst.training.gradients`.

    Raises:
        ValueError: no teacher to learn from, no term of labels, or what makes the run impossible.
    """
    settings = build.settings(cfg)
    if settings.teacher.model is None:
        raise ValueError("no term of the loss asks for a teacher's knowledge; choose for example loss=[kd,at,nst_poly]")
    networks, data = build.networks(settings), build.dataset(settings)
    with ranks(settings.trainer.device) as here:
        source = teaching(settings, networks, here, data, partial(_trained, here, data))
        networks.distiller.to(here.device)
        loader = build.loader(settings, here, data, "train", source.views)
        batches = list(islice(loader.epoch(0), BALANCE_BATCHES))
        balance_table("before training", pulls(networks.distiller, source.knowledge, batches))
        weights = run_folder(asdict(settings)) / STUDENT
        if weights.is_file():
            load_weights(networks.distiller.student, weights)
            balance_table("after training", pulls(networks.distiller, source.knowledge, batches))


def _check_teacher(settings: RunConfig, done: dict[str, Any]) -> None:
    """Raises ValueError where a finished run learned from other weights than those its file holds now."""
    weights, teacher = settings.teacher.weights, done["teacher"]
    if teacher is None or weights is None or not Path(weights).is_file():
        return
    if (found := sha256_of(weights)) != teacher["sha256"]:
        raise ValueError(
            f"{done['folder']} is finished, with a teacher of SHA-256 {teacher['sha256']}; {weights} now has {found}. "
            "Give the new weights another name, or delete that folder to run it again"
        )


def _hold(folder: RunFolder, config: dict[str, Any], here: Ranks, wait: bool) -> None:
    """Rank 0 takes the folder; the others wait for it, asking again and again: no collective call lasts long."""
    told = False
    while True:
        held = None
        try:
            if here.main:
                folder.open(config)
        except RunLockedError as error:
            held = error
            if wait and not told:
                print(f"waiting: {error}", flush=True)
            told = True
        if here.max(int(held is not None)) == [0]:
            return
        if not wait:
            raise held or RunLockedError(f"{folder.path} is being written by another process")


def _train(
    settings: RunConfig,
    networks: build.Networks,
    here: Ranks,
    data: Dataset,
    folder: RunFolder,
    source: Teaching,
) -> dict[str, Any]:
    loader, teacher = build.loader(settings, here, data, "train", source.views), source.about
    if source.knowledge.prefetch_batches:
        loader = Prefetch(loader, source.knowledge)
    student = networks.distiller.student
    trainer = Trainer(
        networks.distiller, source.knowledge, loader,
        optim=settings.optim, settings=settings.trainer, ranks=here, seed=settings.seed,
        compile_knowledge=source.knowledge.compile,
    )  # fmt: skip
    evaluated = "val" if data.val is not None else "test"
    evaluation = build.loader(settings, here, data, evaluated)
    draw = _drawing(student, source, here, data) if settings.trainer.heatmaps and here.main else None
    about = {  # what rank 0 finds must be the same in every start of the run
        "config": identity(asdict(settings)),
        "teacher": {"sha256": teacher["sha256"]} if teacher else None,
        "data": {"sha256": data.fingerprint} if here.main else None,
    }
    made_with = provenance(here.device, here.world)
    last = Fit(trainer, evaluation, folder.path, draw, about=about, split=evaluated).run()
    test = last
    if evaluated == "val":
        test = evaluate(student, build.loader(settings, here, data, "test").epoch(0), here, settings.trainer.precision)
    summary = {
        "finished": True,
        "folder": str(folder.path),
        "test": asdict(test),
        "evaluated_on": evaluated,
        "last": asdict(last),
        "teacher": teacher,
        **_outcome(settings, trainer),
        **made_with,
        "config": asdict(settings),
    }
    if here.main:
        save_weights(folder.path / STUDENT, student, _metadata(settings, data, test))
        write_whole(folder.path / "summary.json", json.dumps(summary, indent=1).encode())
    here.barrier()
    return summary


def _drawing(student: nn.Module, source: Teaching, here: Ranks, data: Dataset) -> Callable[[], dict[str, Tensor]]:
    """What draws the heat maps of both networks on eight test images."""
    first = torch.arange(min(8, len(data.test)), device=here.device)
    images = data.test.render(first, torch.full_like(first, data.test.identity))
    seen = {"student": (student, images)}
    if source.live is not None:
        seen["teacher"] = (source.live.model, source.live.convert(images))
    return partial(heatmaps, images, seen, Normalization(data.mean, data.std))


def _outcome(settings: RunConfig, trainer: Trainer) -> dict[str, Any]:
    """What the summary tells of the training itself."""
    progress = trainer.progress
    parameters = build.count_parameters(trainer.distiller.student)
    return {
        "best": {"top1": progress.best_top1, "epoch": progress.best_epoch},
        "student": {"name": settings.model["name"], "parameters": parameters},
        "seeds": {"run": settings.seed, "teacher": settings.teacher.seed},
        "steps": progress.step,
        "compiled": trainer.maybe_compiled.chosen,
        "skipped_steps": progress.skipped,
        "seconds": round(progress.seconds, 2),
    }


def _metadata(settings: RunConfig, data: Dataset, test: Metrics) -> dict[str, str]:
    """What the student's weights carry with them."""
    return {
        "arch": settings.model["name"],
        "dataset": data.name,
        "mean": ",".join(str(v) for v in data.mean),
        "std": ",".join(str(v) for v in data.std),
        "test_accuracy": f"{test.top1 / 100:.4f}",
    }


def _check_split(settings: RunConfig, data: Dataset, here: Ranks) -> None:
    images, batch = len(data.train), settings.trainer.batch_size
    tail = images % batch or batch
    if min(batch, tail) < here.world:
        raise ValueError(
            f"trainer.batch_size={batch}: the last batch of an epoch of {images} images has {min(batch, tail)}, "
            f"too few for {here.world} ranks; choose another batch size"
        )


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
        loader = data.split(asked.split).loader(
            asked.batch_size, train=False, rank=here.rank, world=here.world, device=here.device
        )
        metrics = evaluate(TeacherOutput(live), loader.epoch(0), here, asked.precision)
        if here.main:
            print(
                f"{asked.model['name']} ({asked.weights}) on {metrics.images:,} {asked.split} images of {data.name}: "
                f"top-1 {metrics.top1:.2f} %, top-5 {metrics.top5:.2f} %, cross-entropy {metrics.loss:.4f}"
            )
    return metrics
