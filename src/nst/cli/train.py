"""`nst train`: a run, its plan for `dry_run=true`, its result and a next command."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table

from nst.cli.compose import hydra_main
from nst.config import RunConfig
from nst.storage.folder import STUDENT, measure_of, measured


def train(arguments: Sequence[str]) -> None:
    """Train a student with or without a teacher: `nst train model=resnet20 loss=nst_poly`."""
    hydra_main(task, "config", arguments)


def task(cfg: DictConfig) -> float:
    """One run; sweepers minimise the returned error (percent, on the evaluated split; the loss of features on images without labels)."""
    if not (summary := run(cfg)):
        return 0.0
    measure = measure_of(summary["last"])
    return summary["last"]["loss"] if measure == "loss" else 100 - summary["last"][measure]


def run(cfg: DictConfig) -> dict[str, Any]:
    """Execute a composed configuration, and print the result: the run's summary (also in `summary.json`), empty for a dry run.

    Raises ValueError for what makes the run impossible, before any work where possible; Interrupted when stopped by a signal, saved.
    """
    from nst import build

    settings = build.settings(cfg)
    if settings.dry_run:
        dry_run(settings)
        return {}
    from nst.dist import join
    from nst.run import execute

    with join(settings.trainer.device, settings.trainer.timeout) as dist:
        dist.check_same_settings(asdict(settings))
        summary = execute(settings, dist)
        if dist.main:
            print_result(settings, summary)
        return summary


def dry_run(settings: RunConfig) -> None:
    """Print the plan of a run, built without downloads. Raises ValueError for what makes it impossible, as weights that do not fit."""
    from nst import build
    from nst.layers import LOGITS, shown
    from nst.models.weights import load_weights
    from nst.storage.folder import SUMMARY, run_folder
    from nst.teacher.prepare import comes_trained, plan_cache
    from nst.trial import check_batches, check_patience, try_networks

    published = bool((settings.teacher.model or {}).get("pretrained"))
    settings.model = build.without_download(settings.model)
    if settings.teacher.model is not None:
        settings.teacher.model = build.without_download(settings.teacher.model)
    networks = build.networks(settings)
    try_networks(settings, networks.distiller, networks.teacher)
    build.optimization(settings, distiller=networks.distiller)
    build.trackers(settings)
    build.metrics(settings)
    if settings.teacher.model is not None and settings.teacher.weights is None:
        build.optimization(build.teacher_run(settings), "teacher.train.")
    teacher, trainer = networks.teacher, settings.trainer
    plan = [f"student: {settings.model['name']}, {build.count_parameters(networks.distiller.student):,} parameters"]
    plan.append(f"losses: {build.count_parameters(networks.distiller.losses):,} parameters")
    if teacher is not None and settings.teacher.model is not None:
        plan.insert(0, f"teacher: {settings.teacher.model['name']}, {build.count_parameters(teacher):,} parameters")
        if settings.teacher.weights is not None:
            load_weights(teacher, settings.teacher.weights, settings.teacher.weights_key)
        for member in getattr(teacher, "members", {}).values():  # of an ensemble
            if member.weights is not None:
                load_weights(member.network, member.weights, member.weights_key)

    # length and images, of which nothing is downloaded
    if "download" in settings.data:
        settings.data["download"] = False
    length = f"{trainer.epochs} epochs"
    try:
        with env_override({"HF_HUB_OFFLINE": "1"}):
            data = build.dataset(settings)
        steps = -(-len(data.train) // trainer.batch_size)
        total = trainer.steps or trainer.epochs * steps
        length, images = f"{total / steps:g} epochs of {steps:,} steps, {total:,} in all", data.describe()
        if teacher is not None and settings.cache.views:
            images += "\n" + plan_cache(settings, networks, data)[-1]
    except (ValueError, OSError) as error:
        places = [settings.data[key] for key in ("root", "path") if settings.data.get(key) is not None]
        if "download" not in settings.data and all(Path(place).exists() for place in places):
            raise  # else the images are not on this machine
        images = f"not read: {error}"
    else:
        check_patience(trainer, data.val is not None)
        check_batches(trainer, networks.distiller, len(data.train), (data.channels, data.size, data.size))
    optimizer, schedule = (str(node["_target_"]).rpartition(".")[2] for node in (settings.optim, settings.schedule))
    optimizer += f" at {settings.optim.get('lr')}"
    plan += [f"training: {length}; batch {trainer.batch_size}, {optimizer}, {schedule}", f"images: {images}"]

    # what comes before the student
    if published and settings.teacher.weights is None:
        plan.append("teacher: published weights; trained first only if they are of another number of classes")
    elif teacher is not None and not comes_trained(
        settings, teacher, networks.teacher_shapes[LOGITS], settings.data["num_classes"]
    ):
        first = build.teacher_run(settings)
        folder = run_folder(asdict(first))
        known = "was trained before" if (folder / SUMMARY).is_file() else "is trained first and kept"
        plan.append(f"teacher: {first.model['name']}, {first.trainer.epochs} epochs, {known}: {folder}")
    columns = ("term", "weight", "teacher", "student", "target of the teacher")
    table = Table(*(Column(name, overflow="fold") for name in columns), title="loss terms")
    for term, pair in ((t, pair) for t in networks.distiller.terms for pair in t.pairs):
        row = [term.name, f"{term.weight * pair.weight:g}", "labels", "logits"]
        if term.loss.source == "teacher":
            shapes = networks.student_shapes[pair.student], networks.teacher_shapes[pair.teacher]
            row[2:] = f"{pair.teacher} {shown(shapes[1])}", f"{pair.student} {shown(shapes[0])}"
            target = term.loss.target_shapes(*shapes)
            row.append(", ".join(f"{name}: {prod(shape):,} values" for name, shape in target.items()))
        table.add_row(*row)
    Console().print(table)
    print(*plan, sep="\n")


def print_result(settings: RunConfig, summary: dict[str, Any]) -> None:
    """Print the results of a run, its folder, and a next command."""
    teacher, student, test, best = (summary[key] for key in ("teacher", "student", "test", "best"))
    title = "finished earlier; nothing was run" if summary.get("was_finished") else "finished"
    table = Table(title=title, show_header=False)
    if teacher is not None:
        text = f"{teacher['name']}, {teacher['parameters']:,} parameters"
        if "top1" in teacher:  # there were labels
            held_out = "" if teacher["evaluated_on"] == "test" else f" (on the {teacher['evaluated_on']} images)"
            text += f": {measured(teacher.get('measure', 'top1'), teacher['top1'])}{held_out}"
        table.add_row("teacher", text)
    measure = measure_of(test)
    text = f"{student['name']}, {student['parameters']:,} parameters{' without classifier' if student.get('left_out') else ''}"
    table.add_row("student", f"{text}: {measured(measure, test[measure])} (last epoch)")
    table.add_row("evaluated on", f"{test['images']:,} test images")
    chosen = f"(chosen on the {summary['evaluated_on']} images)"
    table.add_row("best epoch", f"{best['epoch']}: {measured(measure, best[measure])} {chosen}")
    table.add_row("time", f"{summary['seconds']:.1f} s of training, {summary['steps']:,} steps")
    Console().print(table)
    print(f"written to: {summary['folder']}")
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        print(f"next: {next_command(settings, summary['folder'], student.get('left_out', ()))}")


def next_command(settings: RunConfig, folder: str, left_out: Sequence[str] = ()) -> str:
    """A sensible next command, for a shell: with a teacher after a baseline, the classifier after features alone, else an export."""
    typed: list[str] = []
    if HydraConfig.initialized():
        folders = [s.path for s in HydraConfig.get().runtime.config_sources if s.provider == "command-line"]
        typed = [*(f"--config-dir={path}" for path in folders), *HydraConfig.get().overrides.task]
    if settings.teacher.model is None and not left_out:
        words = [word for word in typed if word != "teacher=none" and not re.match(r"\+*(loss|cache)\b", word)]
        return shlex.join(["nst", "train", *words, "loss=kd"])
    if not left_out:
        return shlex.join(["nst", "export", f"run={folder}"])
    gone = r"\+*((loss|teacher|cache|layers)\b|model\.(weights|weights_key|drop)=)"
    start = [f"++model.weights={folder}/{STUDENT}", f"++model.drop=[{','.join(left_out)}]", "loss=ce", "teacher=none"]
    if not settings.data.get("labeled", True):
        gone += r"|data(?!\.(size|channels|mean|std)=)"
        start = ["data=folder", "data.root=LABELLED", "data.num_classes=NUMBER", *start]
    return shlex.join(["nst", "train", *(word for word in typed if not re.match(gone, word)), *start])
