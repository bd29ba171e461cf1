"""What a loss needs of the teacher over the whole training set: computed once and kept beside the teacher."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nst.config import TrainerConfig
from nst.data.dataset import Dataset
from nst.data.progress import counted
from nst.dist import Dist
from nst.distiller import TargetSpec
from nst.files import write_whole
from nst.layers import LayerHooks
from nst.losses import TransferLoss
from nst.losses.maps import pool
from nst.teacher.live import LiveTeacher


def init_teacher_statistics(
    specs: Sequence[TargetSpec],
    live: LiveTeacher | None,
    of: Mapping[str, Any],
    data: Dataset,
    ranks: Dist,
    trainer: TrainerConfig,
    folder: Path,
) -> None:
    """Hand every loss with a `teacher_layer` its statistics; what is not in `folder` is computed and kept there. Collective.

    Args:
        live: the teacher; None if a cache replaces it.
        of: what the teacher's features depend on besides the images.
        folder: of the teacher's cache, or of what is known of teachers.

    Raises:
        ValueError: there is no file, and no teacher to compute it.
    """
    for loss in {spec.loss: None for spec in specs if spec.loss.teacher_layer is not None}:
        depends = {**of, "images": data.train.fingerprint, "layer": loss.teacher_layer, "loss": type(loss).__name__}
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:8]
        file = folder / f"{of['teacher']['name']}-{type(loss).__name__.lower()}-{digest}.safetensors"
        kept = _read(file)
        if not ranks.max(int(kept is None))[0] and kept is not None:
            loss.init_teacher(kept)
            continue
        if live is None:
            raise ValueError(
                f"{type(loss).__name__} needs what is computed once from the teacher's layer {loss.teacher_layer} over the training images, "
                f"and {file} is not there: name the teacher.weights"
            )
        statistics = loss.teacher_statistics(*_features(loss, live, data, ranks, trainer)).cpu()
        if ranks.main:
            write_whole(file, save({"statistics": statistics}, {"of": json.dumps(depends)}))
            print(
                f"{type(loss).__name__}: computed once from the teacher over {len(data.train):,} images, kept in {file}"
            )
        loss.init_teacher(statistics)


def _read(file: Path) -> Tensor | None:
    """The statistics in a file; None if it is not there, or damaged."""
    try:
        return load_file(file)["statistics"]
    except (OSError, KeyError, SafetensorError):
        return None


@torch.no_grad()
def _features(
    loss: TransferLoss, live: LiveTeacher, data: Dataset, ranks: Dist, trainer: TrainerConfig
) -> tuple[Tensor, Tensor]:
    """The pooled features of the unaugmented training images, `[N, D]` on every rank, and their labels `[N]`."""
    assert loss.teacher_layer is not None
    images, layer, rows = data.train, loss.teacher_layer, torch.empty(0)
    loader = images.loader(
        trainer.eval_batch_size, train=False, rank=ranks.rank, world=ranks.world, device=ranks.device,
        channels_last=trainer.channels_last, workers=trainer.workers,
    )  # fmt: skip
    hooks = LayerHooks(live.model, [layer])
    try:
        total = len(images) // ranks.world
        for batch in counted(
            loader.epoch(0), f"{type(loss).__name__}: the teacher's features of {total:,} images", total
        ):
            live.logits(batch.images)
            features = pool(hooks.read()[layer], "teacher")
            if not len(rows):
                rows = features.new_zeros(len(images), features.shape[1])
            rows[batch.indices] = features
    finally:
        hooks.remove()
        live.hooks.read()
    return ranks.sum(rows), images.labels.to(rows.device)
