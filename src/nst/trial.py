"""Before any work: a tiny batch through both networks in the mode, memory format and precision in which training runs them, and what
the data must have. After the first step: what several ranks cannot train.
"""

import copy
import random
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.dist import Dist, autocast
from nst.distiller import Distiller, seeded
from nst.layers import LOGITS, LayerHooks

PASSES = 4  # of a network that draws random numbers: another part of it may run in each


def try_networks(settings: RunConfig, distiller: Distiller, teacher: nn.Module | None) -> None:
    """Run the student in training mode and the teacher in evaluation mode on two blank images. On the CPU; nothing changes.

    Raises:
        ValueError: a network that fails so, an output that is not logits, a layer that not every pass reaches; says what to do.
    """
    layers = {pair.student for term in distiller.terms for pair in term.pairs} - {LOGITS}
    _try(settings, "model", distiller.student, distiller.hooks, layers, settings.trainer.precision)
    if teacher is not None:
        layers = {spec.layer for spec in distiller.target_specs} - {LOGITS}
        hooks = LayerHooks(teacher, sorted(layers))
        try:
            _try(settings, "teacher.model", teacher, hooks, layers, settings.teacher.precision)
        finally:
            hooks.remove()


def _try(settings: RunConfig, key: str, model: nn.Module, hooks: LayerHooks, layers: set[str], precision: str) -> None:
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):  # runs on GPUs alone
        return
    train, channels_last = key == "model", settings.trainer.channels_last
    size, mode = settings.data["size"], "training" if train else "evaluation"
    images = torch.zeros(2, settings.data["channels"], size, size)
    for seed in range(PASSES):
        try:
            output, drew = forward(model, images, train, channels_last, precision, seed)
        except Exception as error:  # whatever a user's network raises
            raise ValueError(f"{key} fails in {mode} mode: {_cause(model, images, train, precision, error)}") from error
        finally:
            features = hooks.read()
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{key}: in {mode} mode it gives a {type(output).__name__}, not logits; let it return the logits only (a second "
                "output, such as an auxiliary classifier's, is not trained)"
            )
        if missing := sorted(layers - features.keys()):
            raise ValueError(
                f"{key}: layer {missing[0]} is not reached in every pass in {mode} mode (a block that stochastic depth skips?), so no loss can "
                "compare it: name another layer, such as the output of the stage"
            )
        if not drew:
            return


def _cause(model: nn.Module, images: Tensor, train: bool, precision: str, error: Exception) -> str:
    """What of the settings makes a pass fail, and what to do."""
    for setting, remedy, channels_last, tried in (
        ("channels_last", "use trainer.channels_last=false, or reshape for view in its forward", False, precision),
        ("precision", "use precision=fp32", False, "fp32"),
    ):
        try:
            forward(model, images, train, channels_last, tried)
        except Exception:  # it is not this
            continue
        return f"{error}. It does not with another {setting}: {remedy}"
    return str(error)


@torch.no_grad()
def forward(
    model: nn.Module, images: Tensor, train: bool, channels_last: bool, precision: str, seed: int = 0
) -> tuple[Any, bool]:
    """The output for `images`, and whether random numbers were drawn for it. The model's weights, buffers and mode stay as they were."""
    layout = {"memory_format": torch.channels_last} if channels_last else {}
    weights = {
        name: value.clone(**(layout if value.ndim == 4 else {}))
        for name, value in chain(model.named_parameters(), model.named_buffers())
    }
    own = {name: copy.deepcopy(v) for name, v in model.state_dict().items() if name.endswith("_extra_state")}
    mode, precision = model.training, "bf16" if precision == "fp16" else precision  # the CPU's
    try:
        with seeded(seed):
            first = _draws()
        with seeded(seed), autocast(torch.device("cpu"), precision):
            output = functional_call(model.train(train), weights, (images.clone(**layout),))
            return output, _draws() != first
    finally:
        model.train(mode)
        if own:
            model.load_state_dict(own, strict=False)


def _draws() -> tuple[float, ...]:
    """The next number of each generator."""
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def check_data(settings: RunConfig, distiller: Distiller, data: Dataset, world: int = 1) -> None:
    """Check that the student can be trained on these images, on `world` ranks.

    Raises:
        ValueError: a batch with fewer images than ranks, or with a single one for batch norm of maps of 1×1; `trainer.patience` without
            a validation part.
    """
    if settings.trainer.patience is not None and data.val is None:
        raise ValueError(
            f"trainer.patience={settings.trainer.patience}: when to stop must not be chosen on the test images; hold out a validation "
            "part, for example data.validation=0.1"
        )
    images = len(data.train)
    batch, accumulate = settings.trainer.batch_size, settings.trainer.accumulate
    tail = images % batch or batch
    if min(batch, tail) < world:
        raise ValueError(
            f"trainer.batch_size={batch}: the last batch of an epoch of {images} images has {min(batch, tail)}, "
            f"too few for {world} ranks; choose another batch size"
        )

    def smallest(size: int) -> int:
        """Images of the smallest forward pass with batches of `size`: of a rank, in one gradient accumulation step."""
        counts = [part // world for part in (min(size, images), images % size) if part]
        return min(count // (min(accumulate, count) or 1) for count in counts)

    if smallest(batch) > 1 or (settings.trainer.sync_bn and world > 1):
        return
    one = torch.zeros(1, data.channels, data.size, data.size)
    try:
        forward(distiller.student, one, True, settings.trainer.channels_last, settings.trainer.precision)
    except (ValueError, RuntimeError) as error:
        better = next((size for size in range(batch + 1, 2 * batch + 2) if smallest(size) > 1), None)
        raise ValueError(
            f"trainer.batch_size={batch}: in the last batch of an epoch of {images} images a rank (or a gradient accumulation "
            f"step) has a single image, on which {settings.model['name']} cannot be trained ({error}); "
            f"{f'trainer.batch_size={better} leaves none' if better else 'choose another one'}"
        ) from error
    finally:
        distiller.hooks.read()


def check_ranks(distiller: Distiller, dist: Dist) -> None:
    """After the first step of a start: checks that several ranks can train this as one process does.

    Raises:
        ValueError: a parameter has no gradient, or a module has written other values into its buffers on other ranks.
    """
    unused = [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    if unused and any(term.loss.on_logits for term in distiller.terms):
        raise ValueError(
            f"{', '.join(name.removeprefix('student.') for name in unused[:3])}: no gradient reaches this parameter, so "
            "several ranks cannot train it: set its requires_grad to False or take it out of the model, or use one process"
        )
    modules = dict(distiller.named_modules())
    for path, buffer in distiller.named_buffers():
        if isinstance(modules[path.rpartition(".")[0]], nn.modules.batchnorm._BatchNorm) or dist.equal(buffer):
            continue
        part, _, name = path.partition(".")
        owner, advice = "model", "checkpoints hold that of one"
        if part != "student":
            key, _, name = name.partition(".")
            owner = f"loss.{key.split(':')[0]}"
            advice = "declare relational = True in its class, so that every rank sees the global batch"
        raise ValueError(
            f"{owner}: its buffer {name} differs between ranks, since each sees other images: {advice}, or use one process"
        )
