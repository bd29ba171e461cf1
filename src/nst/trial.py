"""What is tried before it is relied on: both networks, the smallest batch, several ranks, and the compiled step."""

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nst.config import RunConfig, TrainerConfig
from nst.data.batch import Batch
from nst.dist import Dist, autocast
from nst.distiller import Distiller, seed_draws, seeded
from nst.layers import LOGITS
from nst.losses import Shape
from nst.teacher import Teacher

if TYPE_CHECKING:
    from nst.loop import Forward, Training

log = logging.getLogger(__name__)

Result = tuple[Tensor, list[Tensor]]  # loss and gradients
# relative: of the loss, of the gradient's norm
TOLERANCE = {"fp32": (1e-3, 2e-2), "bf16": (3e-2, 2e-1), "fp16": (1e-2, 1e-1)}


def try_networks(settings: RunConfig, distiller: Distiller, teacher: nn.Module | None) -> None:
    """Run the student in training mode and the teacher in evaluation mode on two blank images. On the CPU; nothing changes.

    Raises:
        ValueError: a network that fails so, an output that is not logits, a layer that the student does not reach.
    """
    images = torch.zeros(2, settings.data["channels"], settings.data["size"], settings.data["size"])
    channels_last = settings.trainer.channels_last
    for key, model, precision in (
        ("model", distiller.student, settings.trainer.precision),
        ("teacher.model", teacher, settings.teacher.precision),
    ):
        if model is None or any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):  # for GPUs alone
            continue
        mode = "training" if key == "model" else "evaluation"
        try:
            output = forward(model, images, key == "model", channels_last, precision)
        except Exception as error:  # whatever a user's network raises
            how = f"trainer.channels_last={str(channels_last).lower()}, precision={precision}"
            raise ValueError(f"{key} fails in {mode} mode: {error} ({how})") from error
        finally:
            features = distiller.hooks.read()
        if not isinstance(output, Tensor):
            raise ValueError(f"{key}: in {mode} mode it gives a {type(output).__name__}, not logits alone")
        layers = {pair.student for term in distiller.terms for pair in term.pairs} - {LOGITS}
        if key == "model" and (missing := sorted(layers - features.keys())):
            raise ValueError(f"model: layer {missing[0]} is not reached in training mode, so no loss can compare it")


@torch.no_grad()
def forward(model: nn.Module, images: Tensor, train: bool, channels_last: bool, precision: str) -> Any:
    """The output of a copy of `model` for `images`; its hooks are those of the model."""
    layout, device = torch.channels_last if channels_last else torch.preserve_format, next(model.parameters()).device
    copied = copy.deepcopy(model).train(train).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    with seeded(0), autocast(device, "bf16" if precision == "fp16" else precision):
        return copied(images.to(device).clone(memory_format=layout))


def check_patience(trainer: TrainerConfig, validated: bool) -> None:
    """Raises ValueError for `trainer.patience` where no validation part is evaluated: it must not be chosen on the test images."""
    if trainer.patience is not None and not validated:
        raise ValueError(f"trainer.patience={trainer.patience}: it needs a validation part; add data.validation=0.1")


def check_batches(trainer: TrainerConfig, distiller: Distiller, images: int, shape: Shape, world: int = 1) -> None:
    """Check that the student can be trained on batches of so many images `(C, H, W)`, on `world` ranks.

    Raises:
        ValueError: a batch with fewer images than ranks; a forward pass of a single image that the student cannot take, such as
            batch norm of maps of 1×1.
    """
    batch = f"trainer.batch_size={trainer.batch_size}: a batch of an epoch of {images} images"
    rest = images % trainer.batch_size if trainer.steps is None or trainer.steps * trainer.batch_size >= images else 0
    counts = [part // world for part in (min(trainer.batch_size, images), rest) if part]
    if min(counts) < 1:
        raise ValueError(f"{batch} has too few for {world} ranks; choose another batch size")
    single = any(count // min(trainer.accumulate, count) == 1 for count in counts)
    if not single or (trainer.sync_bn and world > 1):
        return
    try:
        forward(distiller.student, torch.zeros(1, *shape), True, trainer.channels_last, trainer.precision)
    except (ValueError, RuntimeError) as error:
        name = type(distiller.student).__name__
        raise ValueError(f"{batch} leaves a single image, on which {name} cannot be trained: {error}") from error
    finally:
        distiller.hooks.read()


def check_ranks(distiller: Distiller, dist: Dist) -> None:
    """After the first step of a start: raises ValueError if several ranks cannot train this as one process does.

    That is where a parameter has no gradient, or a module has written other values into its buffers on other ranks.
    """
    unused = [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    if unused and any(term.loss.on_logits for term in distiller.terms):
        raise ValueError(f"{unused[0]}: no gradient reaches it, so several ranks cannot train it: freeze it")
    modules = dict(distiller.named_modules())
    for path, buffer in distiller.named_buffers():
        norm = isinstance(modules[path.rpartition(".")[0]], nn.modules.batchnorm._BatchNorm)
        if norm or bool((dist.stack(buffer.contiguous()) == buffer).all()):
            continue
        advice = "use one process" if path.startswith("student.") else "declare relational = True in the loss's class"
        raise ValueError(f"{path}: this buffer differs between ranks, since each sees other images: {advice}")


def compile_step(training: "Training", teacher: Teacher, batch: Batch) -> None:
    """Compile the forward pass and the teacher for batches of this size, and use both if loss and gradients agree with eager code.

    Wrong gradients of compiled code have been seen (torch 2.15, bf16). Weights, statistics and gradients stay as they were.
    """
    distiller, precision, dist = training.distiller, training.settings.precision, training.dist
    rows = training.parts(len(batch.labels))[0]

    def attempt(forward: "Forward") -> Result:
        """One forward and backward pass."""
        before = [buffer.clone() for buffer in distiller.buffers()]
        seed_draws(0)
        try:
            taught = {key: {n: v[rows] for n, v in target.items()} for key, target in teacher(batch).items()}
            inputs = {name: value[rows] if value.ndim else value for name, value in training.context(batch).items()}
            with autocast(dist.device, precision):
                _, values = forward(batch.images[rows], batch.labels[rows], taught, inputs)
            loss = distiller.total(values)
            (loss if training.scaler is None else training.scaler.scale(loss)).backward()
            return loss.detach(), [p.grad.clone() for p in distiller.parameters() if p.grad is not None]
        finally:
            for p in distiller.parameters():
                p.grad = None
            for buffer, old in zip(distiller.buffers(), before, strict=True):
                buffer.copy_(old)

    eager = attempt(training.forward)
    teacher.compile(len(batch.labels))
    # CUDA graphs need one backward pass a step, in one process. Dropout must draw as in eager code, else the two cannot be compared.
    graphs = dist.device.type == "cuda" and training.settings.accumulate == 1 and dist.world == 1
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": graphs}
    compiled: Any = torch.compile(training.forward, dynamic=False, options=options)

    def forward(*inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(*inputs)

    try:
        reason = disagreement(attempt(forward), eager, precision)
    except Exception as error:  # no C++ compiler, an operator that does not compile, …: all end in eager code
        reason = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
    training.compiles = dist.max(int(reason is not None)) == [0]
    if training.compiles:
        training.compiled = (rows.stop - rows.start, forward)
    else:
        teacher.compile(0)
        log.warning("the step is not compiled: %s", reason or "it fails on another rank")


def disagreement(compiled: Result, eager: Result, precision: str) -> str | None:
    """How loss and gradients of the compiled step differ from those of the eager one; None: by rounding only."""
    bad = sum(not bool(torch.isfinite(g).all()) for g in compiled[1])
    if bad and all(bool(torch.isfinite(g).all()) for g in eager[1]):
        return f"compiled code gives non-finite gradients in {bad} parameters, eager code does not"
    pairs = {"loss": [(compiled[0], eager[0])], "gradient": [*zip(compiled[1], eager[1], strict=True)]}
    for (what, values), tolerance in zip(pairs.items(), TOLERANCE[precision], strict=True):
        difference = torch.stack([(found - wanted).float().norm() for found, wanted in values]).norm()
        size = torch.stack([wanted.float().norm() for _, wanted in values]).norm()
        change = float(difference / size.clamp(min=1e-12))
        if not change <= tolerance:
            return f"compiled and eager {what} differ by {change:.1e} of its norm"
    return None
