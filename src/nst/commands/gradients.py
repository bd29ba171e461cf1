"""Compare the gradients of the terms of a loss, to judge their weights λ.

nst gradients model=resnet8 teacher=resnet20 'loss=[kd,at,nst_poly]'

For each term: the norm of its weighted gradient relative to that of the cross-entropy, and the cosines between the gradients.
The arguments are those of `nst train`. Only a teacher without weights is trained. The student is measured before training, and
also after training if the run with the same arguments is finished.
"""

from collections.abc import Sequence

from omegaconf import DictConfig

import nst.config
from nst.commands.compose import hydra_main
from nst.errors import readable_errors

BATCHES = 8  # that gradients are averaged over


def main(words: Sequence[str]) -> None:
    """Run the command with its arguments."""
    hydra_main(task, "config", words)


def task(cfg: DictConfig) -> None:
    """Print a table before and a table after training."""
    with readable_errors():
        from nst import build

        show(build.settings(cfg))


def show(settings: "nst.config.RunConfig") -> None:
    """Measure and print.

    Raises:
        ValueError: no teacher, no term on labels, or an impossible run.
    """
    from dataclasses import asdict
    from itertools import islice

    from nst import build
    from nst.commands.tables import gradient_tables
    from nst.models.weights import load_weights
    from nst.runs.checkpoint import Checkpoints, read_checkpoint
    from nst.runs.folder import STUDENT, run_folder
    from nst.runs.run import have_teacher
    from nst.training.gradients import compare_gradients
    from nst.training.ranks import ranks

    if settings.teacher.model is None:
        raise ValueError("no term of the loss needs a teacher; choose for example loss=[kd,at,nst_poly]")
    networks, data = build.networks(settings), build.dataset(settings)
    with ranks(settings.trainer.device, settings.trainer.timeout) as here:
        if here.world > 1:
            raise ValueError("nst gradients: one process is needed; start it without torchrun")
        teacher = have_teacher(settings, networks, here, data)
        build.allocate(settings, networks.distiller, len(data.train))
        networks.distiller.to(here.device)
        batches = list(islice(build.loader(settings, here, data, "train", teacher.views).epoch(0), BATCHES))
        distiller = networks.distiller
        gradient_tables("before training", compare_gradients(distiller, teacher.source, batches))
        folder = run_folder(asdict(settings))
        if (folder / STUDENT).is_file():
            newest = Checkpoints(folder).paths()[-1:]
            if newest:  # with parameters and buffers of the losses; the student's weights file may hold its average
                distiller.load_state_dict(read_checkpoint(newest[0])["distiller"])
            load_weights(distiller.student, folder / STUDENT)
            gradient_tables("after training", compare_gradients(distiller, teacher.source, batches))
