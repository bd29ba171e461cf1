"""Train a student with or without a teacher: `nst train model=resnet20 loss=nst_poly`, `nst train --help`."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from nst.cli.compose import hydra_main
from nst.cli.errors import readable_errors
from nst.cli.suggest import next_command
from nst.config import RunConfig

if TYPE_CHECKING:
    from nst.build import Networks


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    hydra_main(task, "config", arguments)


def task(cfg: DictConfig) -> float:
    """One run; sweepers minimise the returned error (percent, on the evaluated split)."""
    with readable_errors():
        summary = run(cfg)
    return 100 - summary["last"]["top1"] if summary else 0.0


def run(cfg: DictConfig) -> dict[str, Any]:
    """Execute a composed configuration, and print the result.

    Returns:
        The run's summary (also in `summary.json`); empty for a dry run.

    Raises:
        ValueError: a setting, file or result that makes the run impossible; raised before any work where possible.
        Interrupted: stopped by a signal, saved.
    """
    from nst import build
    from nst.dist import join
    from nst.run import execute

    settings = build.settings(cfg)
    if settings.dry_run:
        dry_run(settings)
        return {}
    with join(settings.trainer.device, settings.trainer.timeout) as dist:
        dist.check_same_settings(asdict(settings))
        summary = execute(settings, dist)
        if dist.main:
            print_result(settings, summary)
        return summary


def dry_run(settings: RunConfig) -> None:
    """Print the plan of a run: networks, losses, length, images; built without downloads, the teacher with its weights.

    Raises:
        ValueError: what makes the run impossible, weights that do not fit included.
    """
    from nst import build
    from nst.models.weights import load_weights

    published = bool((settings.teacher.model or {}).get("pretrained"))
    settings.model = build.without_download(settings.model)
    if settings.teacher.model is not None:
        settings.teacher.model = build.without_download(settings.teacher.model)
    networks = build.networks(settings)
    build.optimization(settings)
    build.trackers(settings)
    if settings.teacher.model is not None and settings.teacher.weights is None:
        build.optimization(build.teacher_run(settings), "teacher.train.")
    sizes = Table("", "name", "parameters", title="networks")
    if networks.teacher is not None and settings.teacher.model is not None:
        if settings.teacher.weights is not None:
            load_weights(networks.teacher, settings.teacher.weights, settings.teacher.weights_key)
        for member in getattr(networks.teacher, "members", {}).values():  # of an ensemble
            if member.weights is not None:
                load_weights(member.network, member.weights)
        assert settings.teacher.model is not None
        sizes.add_row("teacher", settings.teacher.model["name"], f"{build.count_parameters(networks.teacher):,}")
    sizes.add_row("student", settings.model["name"], f"{build.count_parameters(networks.distiller.student):,}")
    sizes.add_row("losses", "", f"{build.count_parameters(networks.distiller.losses):,}")
    console = Console()
    console.print(sizes)
    console.print(_terms(settings, networks))
    for line in _plan(settings, networks, published):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _terms(settings: RunConfig, networks: "Networks") -> Table:
    """The terms of the loss: weight, layers with their shapes, the teacher's target and memory."""
    from nst.layers import shown

    table = Table(title=f"loss terms, batch {settings.trainer.batch_size}")
    for column in ("term", "weight", "teacher", "student", "target of the teacher", "memory"):
        table.add_column(column, overflow="fold")
    for term in networks.distiller.terms:
        for pair in term.pairs:
            weight = f"{term.weight * pair.weight:g}"
            if term.loss.source == "labels":
                table.add_row(term.name, weight, "labels", "logits", "", "")
                continue
            teacher, student = networks.teacher_shapes[pair.teacher], networks.student_shapes[pair.student]
            spec = term.loss.spec(student, teacher)
            values = sum(prod(shape) for shape in spec.target.values())
            table.add_row(
                term.name, weight, f"{pair.teacher} {shown(teacher)}", f"{pair.student} {shown(student)}",
                f"{spec.implementation}: {values:,} values", f"{spec.workspace * settings.trainer.batch_size / 2**20:.1f} MiB",
            )  # fmt: skip
    return table


def _plan(settings: RunConfig, networks: "Networks", published: bool) -> list[str]:
    """The length of training, the images, and what comes before the student."""
    from nst import build
    from nst.layers import LOGITS
    from nst.storage.folder import SUMMARY, run_folder
    from nst.teacher.prepare import cache_report, comes_trained

    epochs, batch, rate = settings.trainer.epochs, settings.trainer.batch_size, settings.optim.get("lr")
    optimizer, schedule = (str(node["_target_"]).rpartition(".")[2] for node in (settings.optim, settings.schedule))
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    if "download" in settings.data:
        settings.data["download"] = False
    try:
        data = build.dataset(settings)
        steps = -(-len(data.train) // batch)
        length = f"{epochs} epochs of {steps:,} steps, {epochs * steps:,} in all"
        images = data.describe()
        if networks.teacher is not None and settings.cache.views:
            specs, shapes = networks.distiller.target_specs, networks.teacher_shapes
            images += "\n" + cache_report(networks.teacher, specs, shapes, settings.cache, data, settings.outputs)
    except (ValueError, OSError) as error:  # such as a folder that is on another machine
        length, images = f"{epochs} epochs", f"not read: {error}"
    lines = [f"training: {length}; batch {batch}, {optimizer} at {rate}, {schedule}", f"images: {images}"]
    if networks.teacher is None or settings.teacher.weights is not None:
        return lines
    if published:
        lines.append("teacher: published weights; trained first only if they are of another number of classes")
    elif not comes_trained(networks.teacher, networks.teacher_shapes[LOGITS], settings.data["num_classes"]):
        teacher = build.teacher_run(settings)
        folder = run_folder(asdict(teacher))
        known = (folder / SUMMARY).is_file()
        first = "was trained before" if known else f"is trained first, {teacher.trainer.epochs} epochs, and kept"
        lines.append(f"teacher: no teacher.weights; {teacher.model['name']} {first}: {folder}")
    return lines


def print_result(settings: RunConfig, summary: dict[str, Any]) -> None:
    """Print the results of a run, its folder, and a next command."""
    teacher, student, test, best = (summary[key] for key in ("teacher", "student", "test", "best"))
    title = "finished earlier; nothing was run" if summary.get("was_finished") else "finished"
    table = Table(title=title, show_header=False)
    if teacher is not None:
        held_out = "" if teacher["evaluated_on"] == "test" else f" (on the {teacher['evaluated_on']} images)"
        size = f"{teacher['name']}, {teacher['parameters']:,} parameters"
        measure = "by nearest neighbours" if teacher.get("measure") == "knn" else "top-1"
        table.add_row("teacher", f"{size}: {teacher['top1']:.2f} % {measure}{held_out}")
    size = f"{student['name']}, {student['parameters']:,} parameters"
    table.add_row("student", f"{size}: {test['top1']:.2f} % top-1 (last epoch)")
    table.add_row("evaluated on", f"{test['images']:,} test images")
    table.add_row(
        "best epoch", f"{best['epoch']}: {best['top1']:.2f} % (chosen on the {summary['evaluated_on']} images)"
    )
    table.add_row("time", f"{summary['seconds']:.1f} s of training, {summary['steps']:,} steps")
    console = Console()
    console.print(table)
    following = next_command(settings, summary["folder"])
    for line in (f"written to: {summary['folder']}", *([f"next: {following}"] if following else [])):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
