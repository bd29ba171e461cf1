"""Compare the gradients of the terms of a loss, to judge their weights λ.

nst gradients model=resnet8 teacher=resnet20 'loss=[kd,at,nst_poly]'

For each term: the norm of its weighted gradient relative to that of the cross-entropy, and the cosines between the gradients of
all terms. The arguments are those of `nst train`. Only a teacher without weights is trained. The student is measured before
training, and also after training if the run with the same arguments is finished: then both are written to the run's folder, as
gradients.json and the page gradients.html.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

import nst.config
from nst.cli.compose import hydra_main
from nst.cli.errors import readable_errors

if TYPE_CHECKING:
    from nst.evaluate import TermGradient

BATCHES = 8  # that gradients are averaged over


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    hydra_main(task, "config", arguments)


def task(cfg: DictConfig) -> None:
    """Print a table before and a table after training."""
    with readable_errors():
        from nst import build

        show(build.settings(cfg))


def show(settings: "nst.config.RunConfig") -> None:
    """Measure and print; of a finished run also write.

    Raises:
        ValueError: no teacher, no term on labels, or an impossible run.
    """
    from dataclasses import asdict
    from itertools import islice

    from nst import build
    from nst.cli.tables import gradient_tables
    from nst.dist import join
    from nst.evaluate import compare_gradients
    from nst.models.weights import load_weights
    from nst.runs.checkpoint import Checkpoints, read_checkpoint
    from nst.runs.folder import STUDENT, SUMMARY, run_folder
    from nst.runs.run import prepare_teacher

    if settings.teacher.model is None:
        raise ValueError("no term of the loss needs a teacher; choose for example loss=[kd,at,nst_poly]")
    networks, data = build.networks(settings), build.dataset(settings)
    with join(settings.trainer.device, settings.trainer.timeout) as group:
        if group.world > 1:
            raise ValueError("nst gradients: one process is needed; start it without torchrun")
        teacher = prepare_teacher(settings, networks, group, data)
        build.init_memory(settings, networks.distiller, len(data.train))
        networks.distiller.to(group.device)
        epoch = build.loader(settings, group, data, "train", teacher.views).epoch(0)
        batches = list(teacher.targets(islice(epoch, BATCHES)))
        distiller = networks.distiller
        before = compare_gradients(distiller, batches)
        gradient_tables("before training", before)
        folder = run_folder(asdict(settings))
        if (folder / SUMMARY).is_file():
            newest = Checkpoints(folder).paths()[-1:]
            if newest:  # with parameters and buffers of the losses; the student's weights file may hold its average
                distiller.load_state_dict(read_checkpoint(newest[0])["distiller"])
            load_weights(distiller.student, folder / STUDENT)
            after = compare_gradients(distiller, batches)
            gradient_tables("after training", after)
            write_page(folder, settings, sum(len(batch.labels) for batch, _ in batches), before, after)


def write_page(
    folder: Path,
    settings: "nst.config.RunConfig",
    images: int,
    before: "list[TermGradient]",
    after: "list[TermGradient]",
) -> None:
    """Write `gradients.json` and `gradients.html` to the run's folder, and print their paths."""
    from dataclasses import asdict

    from nst.files import write_whole
    from nst.report.gradients import gradient_page
    from nst.runs.provenance import commit

    teacher, data = settings.teacher.model, settings.data["name"]
    assert teacher is not None
    measured = {"before training": before, "after training": after}
    result = {
        "run": "/".join(folder.parts[-4:]),
        "about": [
            f"Teacher {teacher['name']}, student {settings.model['name']}, {data}, seed {settings.seed}.",
            f"Mean gradient over the first {images:,} training images of an epoch, in batches of {settings.trainer.batch_size}, "
            "of all of the student's parameters, in training mode.",
            f"Commit {commit() or 'unknown'}.",
        ],
        "measured": {when: [asdict(term) for term in found] for when, found in measured.items()},
    }
    write_whole(folder / "gradients.json", (json.dumps(_finite(result), indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(folder / "gradients.html", gradient_page(result).encode())
    print(f"written: {folder}/gradients.html, gradients.json")


def _finite(node: Any) -> Any:
    """The same with null for numbers that JSON has not: of a gradient of zero length nothing is relative."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
