"""`nst gradients`: the gradients of the terms of a loss, to judge their weights λ."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nst.cli.compose import hydra_main
from nst.config import RunConfig

BATCHES = 8  # that gradients are averaged over


def gradients(arguments: Sequence[str]) -> None:
    """Compare the gradients of the terms of a loss, to judge their weights λ.

    nst gradients model=resnet8 teacher=resnet20 'loss=[kd,at,nst_poly]'

    For each term: the norm of its weighted gradient relative to that of the cross-entropy, and the cosines between the gradients
    of all terms. The arguments are those of `nst train`. Only a teacher without weights is trained. The student is measured before
    training, and also after training if the run with the same arguments is finished: then both are written to its gradients.json.
    """

    def task(cfg: Any) -> None:
        from nst import build

        show(build.settings(cfg))

    hydra_main(task, "config", arguments)


def show(settings: RunConfig) -> None:
    """Measure and print; of a finished run also write.

    Raises:
        ValueError: no teacher, no term on labels, or an impossible run.
    """
    from nst import build
    from nst.dist import join
    from nst.distiller import seeded
    from nst.evaluate import compare_gradients
    from nst.files import write_whole
    from nst.models.weights import load_weights
    from nst.run import prepare_teacher
    from nst.storage.checkpoint import Checkpoints, read_checkpoint
    from nst.storage.folder import STUDENT, SUMMARY, run_folder
    from nst.storage.record import commit

    if settings.teacher.model is None:
        raise ValueError("no term of the loss needs a teacher; choose for example loss=[kd,at,nst_poly]")
    networks, data = build.networks(settings), build.dataset(settings)
    with join(settings.trainer.device, settings.trainer.timeout) as dist:
        if dist.world > 1:
            raise ValueError("nst gradients: one process is needed; start it without torchrun")
        teacher = prepare_teacher(settings, networks, dist, data)
        with seeded(settings.seed):
            networks.distiller.init_memory(len(data.train))
        distiller = networks.distiller.to(dist.device)
        epoch = build.loader(settings, dist, data, "train", teacher.views).epoch(0)
        batches = list(teacher.targets(islice(epoch, BATCHES)))
        measured = {"before training": compare_gradients(distiller, batches)}
        gradient_tables("before training", measured["before training"])
        folder = run_folder(asdict(settings))
        if not (folder / SUMMARY).is_file():
            return
        if newest := Checkpoints(folder).paths()[-1:]:  # with the losses' own parameters and buffers
            distiller.load_state_dict(read_checkpoint(newest[0])["distiller"])
        load_weights(distiller.student, folder / STUDENT)  # may hold an average of the checkpoint's
        measured["after training"] = compare_gradients(distiller, batches)
        gradient_tables("after training", measured["after training"])
    images = sum(len(batch.labels) for batch, _ in batches)
    result = {
        "run": "/".join(folder.parts[-4:]), "commit": commit(), "images": images, "batch_size": settings.trainer.batch_size,
        "measured": {when: [asdict(term) for term in terms] for when, terms in measured.items()},
    }  # fmt: skip
    # JSON has no numbers for what is relative to a gradient of zero length
    text = re.sub(r"(?<=: )(NaN|-?Infinity)(?=[,\n])", "null", json.dumps(result, indent=1, ensure_ascii=False))
    write_whole(folder / "gradients.json", f"{text}\n".encode())
    print(f"written: {folder}/gradients.json")


def gradient_tables(when: str, measured: Sequence[Any]) -> None:
    """Print `TermGradient`s: λ · |gradient| and its share of their sum, and the cosines, by the terms' numbers."""
    total = sum(term.relative_norm for term in measured) or 1.0
    numbers = [str(number) for number, _ in enumerate(measured, 1)]
    title = f"{when}; gradient of the labels = 1"
    lengths = Table("term", "λ", "value", "λ · |gradient|", "of the sum", title=title, title_justify="left")
    # without vertical lines ten terms fit into 80 columns
    matrix = Table("term", *numbers, title="cosines", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, term in zip(numbers, measured, strict=True):
        share = f"{100 * term.relative_norm / total:.0f} %"
        lengths.add_row(term.term, f"{term.weight:g}", f"{term.value:.4g}", f"{term.relative_norm:.3g}", share)
        matrix.add_row(f"{number} {term.term}", *(f"{term.cosines[other.term]:+.2f}" for other in measured))
    Console().print(lengths, matrix, sep="\n")
