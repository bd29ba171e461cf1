"""Train a student with or without a teacher: `nst train model=resnet20 loss=nst_poly`, `nst train --help`."""

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

    settings.model = build.without_download(settings.model)
    if settings.teacher.model is not None:
        settings.teacher.model = build.without_download(settings.teacher.model)
    networks = build.networks(settings)
    build.check(settings)
    if networks.teacher is not None and settings.teacher.weights is not None:
        load_weights(networks.teacher, settings.teacher.weights)
    console = Console()
    console.print(_networks_table(settings, networks))
    console.print(_terms_table(settings, networks))
    for line in _plan(settings):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _networks_table(settings: RunConfig, networks: "Networks") -> Table:
    from nst.build import count_parameters

    table = Table(title="networks")
    for column in ("", "name", "parameters"):
        table.add_column(column)
    if networks.teacher is not None:
        table.add_row("teacher", settings.teacher.model["name"], f"{count_parameters(networks.teacher):,}")
    table.add_row("student", settings.model["name"], f"{count_parameters(networks.distiller.student):,}")
    table.add_row("losses", "", f"{count_parameters(networks.distiller.losses):,}")
    return table


def _terms_table(settings: RunConfig, networks: "Networks") -> Table:
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


def _plan(settings: RunConfig) -> list[str]:
    """The length of training, the images, and what comes before the student."""
    from nst import build
    from nst.build import teacher_run
    from nst.runs.folder import SUMMARY, run_folder

    epochs, rate = settings.trainer.epochs, settings.optim.get("lr")
    optimizer, schedule = (str(node["_target_"]).rpartition(".")[2] for node in (settings.optim, settings.schedule))
    lines = []
    try:
        data = build.dataset(settings)
    except (ValueError, OSError) as error:
        lines += [f"training: {epochs} epochs, {optimizer} at {rate}, {schedule}", f"images: not read: {error}"]
    else:
        count, batch = len(data.train), settings.trainer.batch_size
        steps = -(-count // batch)
        lines += [
            f"training: {epochs} epochs of {steps:,} steps ({epochs * steps:,} in all), {optimizer} at {rate}, {schedule}",
            f"images: {data.describe()}",
        ]
    if settings.teacher.model is not None and settings.teacher.weights is None:
        teacher = teacher_run(settings)
        folder = run_folder(asdict(teacher))
        known = (folder / SUMMARY).is_file()
        first = "was trained before" if known else f"is trained first, {teacher.trainer.epochs} epochs, and kept"
        lines.append(f"teacher: {teacher.model['name']} has no teacher.weights: it {first} in {folder}")
    if settings.cache.views:
        lines.append(f"cache: {settings.cache.views} views of each image, {settings.cache.dtype}")
    return lines


def print_result(settings: RunConfig, summary: dict[str, Any]) -> None:
    """Print the results of a run, its folder, and a next command."""
    console, teacher, test = Console(), summary["teacher"], summary["test"]
    title = "finished earlier; nothing was run" if summary.get("was_finished") else "finished"
    table = Table(title=title, show_header=False)
    for role, network, result, note in (
        ("teacher", teacher, teacher, ""),
        ("student", summary["student"], test, " (last epoch)"),
    ):
        if network is None:
            continue
        if role == "teacher" and teacher["evaluated_on"] != "test":
            note = f" (on the {teacher['evaluated_on']} images)"
        table.add_row(
            role, f"{network['name']}, {network['parameters']:,} parameters: {result['top1']:.2f} % top-1{note}"
        )
    table.add_row("evaluated on", f"{test['images']:,} test images")
    best, split = summary["best"], summary["evaluated_on"]
    table.add_row("best epoch", f"{best['epoch']}: {best['top1']:.2f} % (chosen on the {split} images)")
    table.add_row("time", f"{summary['seconds']:.1f} s of training, {summary['steps']:,} steps")
    console.print(table)
    console.print(f"written to: {summary['folder']}", highlight=False, soft_wrap=True, markup=False)
    if (following := next_command(settings, summary["folder"])) is not None:
        console.print(f"next: {following}", highlight=False, soft_wrap=True, markup=False)
