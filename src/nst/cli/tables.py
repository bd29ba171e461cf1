"""Tables for the terminal."""

from dataclasses import asdict
from math import prod
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nst.build import Networks, count_parameters
from nst.cli.suggest import next_command
from nst.config import RunConfig
from nst.evaluate import TermGradient
from nst.layers import shown
from nst.report.gradients import cosines, norms


def dry_run_tables(settings: RunConfig, networks: Networks) -> None:
    """Print the layers of a run, the sizes, and the implementation of each loss."""
    console = Console()
    sizes = Table(title="networks")
    for column in ("", "name", "parameters"):
        sizes.add_column(column)
    distiller = networks.distiller
    rows = [("student", settings.model["name"], distiller.student), ("losses", "", distiller.losses)]
    if networks.teacher is not None:
        rows.insert(0, ("teacher", settings.teacher.model["name"], networks.teacher))
    for role, name, module in rows:
        sizes.add_row(role, name, f"{count_parameters(module):,}")
    console.print(sizes)
    pairs = Table(title=f"loss terms, batch {settings.trainer.batch_size}")
    for column in ("term", "weight", "teacher", "student", "target of the teacher", "memory"):
        pairs.add_column(column, overflow="fold")
    for term in distiller.terms:
        for pair in term.pairs:
            weight = f"{term.weight * pair.weight:g}"
            if term.loss.source == "labels":
                pairs.add_row(term.name, weight, "labels", "logits", "", "")
                continue
            teacher, student = networks.teacher_shapes[pair.teacher], networks.student_shapes[pair.student]
            spec = term.loss.spec(student, teacher)
            values = sum(prod(shape) for shape in spec.target.values())
            pairs.add_row(
                term.name, weight, f"{pair.teacher} {shown(teacher)}", f"{pair.student} {shown(student)}",
                f"{spec.implementation}: {values:,} values", f"{spec.workspace * settings.trainer.batch_size / 2**20:.1f} MiB",
            )  # fmt: skip
    console.print(pairs)


def result_table(settings: RunConfig, target: dict[str, Any]) -> None:
    """Print the results of a run, its folder, and a next command."""
    console = Console()
    table = Table(
        title="finished earlier; nothing was run" if target.get("was_finished") else "finished", show_header=False
    )
    teacher, test = target["teacher"], target["test"]
    if teacher is not None:
        held_out = "" if teacher["evaluated_on"] == "test" else f" (on the {teacher['evaluated_on']} images)"
        table.add_row(
            "teacher",
            f"{teacher['name']}, {teacher['parameters']:,} parameters: {teacher['top1']:.2f} % top-1{held_out}",
        )
    student = target["student"]
    table.add_row(
        "student", f"{student['name']}, {student['parameters']:,} parameters: {test['top1']:.2f} % top-1 (last epoch)"
    )
    table.add_row("evaluated on", f"{test['images']:,} test images")
    best, split = target["best"], target["evaluated_on"]
    table.add_row("best epoch", f"{best['epoch']}: {best['top1']:.2f} % (chosen on the {split} images)")
    table.add_row("time", f"{target['seconds']:.1f} s of training, {target['steps']:,} steps")
    console.print(table)
    console.print(f"written to: {target['folder']}", highlight=False, soft_wrap=True, markup=False)
    if (following := next_command(settings, target["folder"])) is not None:
        console.print(f"next: {following}", highlight=False, soft_wrap=True, markup=False)


def gradient_tables(when: str, found: list[TermGradient]) -> None:
    """Print the gradients of a run's terms: norms, and the cosines between them, whose columns have the terms' numbers."""
    console, terms = Console(), [asdict(gradient) for gradient in found]
    lengths, grid = Table(title=Text(f"{when}; gradient of the labels = 1"), title_justify="left"), norms(terms)
    # without vertical lines ten terms fit into 80 columns
    matrix = Table(title="cosines", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in grid.header:
        lengths.add_column(column, justify="left" if column == "term" else "right")
    for row in grid.rows:
        lengths.add_row(*row)
    matrix.add_column("term", no_wrap=True)
    for number, _ in enumerate(found, 1):
        matrix.add_column(str(number), justify="right", no_wrap=True)
    for number, (name, row) in enumerate(cosines(terms), 1):
        matrix.add_row(f"{number} {name}", *(text for text, _ in row))
    console.print(lengths)
    console.print(matrix)
