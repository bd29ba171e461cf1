"""Configuration → objects. The only place that instantiates components; all other modules take objects."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nst.config import (
    CacheConfig,
    EvaluateConfig,
    RunConfig,
    TeacherTrainConfig,
    check_numbers,
    check_pair,
    check_ranges,
    check_values,
    renamed,
)
from nst.data.batch import Loader
from nst.data.dataset import Dataset
from nst.data.mixing import MixingLoader
from nst.dist import Dist
from nst.distiller import Distiller, TargetSpec, Term
from nst.layers import LOGITS, feature_shapes, resolve, shown
from nst.losses import Shape, TransferLoss
from nst.models.weights import check_saveable
from nst.optim import MakeOptimizer, Schedule, check_optimizer
from nst.runs.checkpoint import check_resumable
from nst.runs.trackers import Tracker
from nst.seeds import seeded
from nst.teacher import Teacher
from nst.terms import check_name, instantiate, resolve_layers, terms
from nst.training.trainer import Trainer


@dataclass(frozen=True)
class Networks:
    """The networks of a run, wired: no data has been read, no weights loaded."""

    distiller: Distiller
    teacher: nn.Module | None
    student_shapes: dict[str, Shape]  # layer → (C, H, W) of one image
    teacher_shapes: dict[str, Shape]


def settings(cfg: DictConfig) -> RunConfig:
    """The composed configuration, resolved and checked.

    A teacher that no term needs is dropped, so that `loss=ce` is plain training with any `teacher`.

    Raises:
        ValueError: names the key, its value and a correct one.
    """
    run = OmegaConf.to_object(cfg)
    if not isinstance(run, RunConfig):
        raise ValueError(f"a composed run configuration is needed, found {type(run).__name__}")
    _check_keys(cfg, run, "")
    check_values(run)
    for group in ("model", "data"):
        _check_component(group, getattr(run, group))
    _check_sizes(run.data)
    resolve_layers(run)
    loss_terms = terms(run)
    if not loss_terms:
        raise ValueError("loss: no term with a positive weight; choose for example loss=ce or loss=nst_poly")
    teacher_terms = [term.name for term in loss_terms if term.loss.source == "teacher"]
    if not teacher_terms:
        run.teacher.model, run.teacher.weights = None, None
        run.cache = CacheConfig()
    elif run.teacher.model is None:
        raise ValueError(
            f"loss.{teacher_terms[0]} learns from a teacher, but teacher=none; add teacher=resnet56, or use loss=ce"
        )
    else:
        _check_component("teacher.model", run.teacher.model)
        check_pair("teacher.", run.teacher, run.data["channels"])
    _check_classes_agree(run)
    _check_kinds(run, loss_terms)
    _check_training(run)
    trackers(run)
    return run


def _check_sizes(data: Mapping[str, Any]) -> None:
    for key in ("num_classes", "channels", "size"):
        if isinstance(number := data.get(key), int) and number < 1:
            raise ValueError(f"data.{key}={number}: at least 1 is needed")


def _check_training(run: RunConfig) -> None:
    """Raises ValueError for a wrong optimizer or schedule of the student, or of a teacher that is trained first."""
    optimizer(run)
    schedule(run)
    if run.teacher.model is not None and run.teacher.weights is None:
        optimizer(run.teacher.train, "teacher.train.optim")
        schedule(run.teacher.train, "teacher.train.schedule")


def _check_keys(cfg: DictConfig, run: Any, prefix: str) -> None:
    """Raises ValueError for a key that is not in the schema: Hydra accepts any `+key=value`."""
    names = [f.name for f in fields(run)]
    for key in cfg:
        value = getattr(run, str(key), None)
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(names)}"
            raise ValueError(renamed(f"{prefix}{key}") or f"{prefix}{key}: unknown key; {hint}")
        if is_dataclass(value):
            _check_keys(cfg[key], value, f"{prefix}{key}.")


def _check_component(key: str, node: Any) -> None:
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ValueError(
            f"{key} is {node!r}; a node with a `_target_` is needed, for example one of configs/{key.partition('.')[0]}"
        )
    check_name(f"{key}.name", node.get("name"))


def _check_classes_agree(run: RunConfig) -> None:
    classes = {
        f"{key}.num_classes": node["num_classes"]
        for key, node in (("data", run.data), ("model", run.model), ("teacher.model", run.teacher.model))
        if node is not None and "num_classes" in node
    }
    if len(set(classes.values())) > 1:
        values = ", ".join(f"{key}={value}" for key, value in classes.items())
        raise ValueError(f"teacher, student and data need the same number of classes, found {values}")


def _check_kinds(run: RunConfig, loss_terms: Sequence[Term]) -> None:
    """Check the requirements that the terms declare against the settings of the run."""
    for term in loss_terms:
        if term.loss.relational and run.trainer.accumulate > 1:
            raise ValueError(
                f"loss.{term.name} relates the images of a batch, so gradient accumulation would change it; "
                f"trainer.accumulate={run.trainer.accumulate}, 1 is needed"
            )
        if term.loss.all_layers and any(pair.weight != 1 for pair in term.pairs):
            raise ValueError(
                f"loss.{term.name}.layers: this loss compares all layers at once, so a pair cannot have its own weight"
            )
    _check_mixing(run, loss_terms)


def _check_mixing(run: RunConfig, loss_terms: Sequence[Term]) -> None:
    """Raises ValueError for settings that mixup and cutmix exclude: whatever needs single images."""
    mixing = [f"trainer.{key}={getattr(run.trainer, key)}" for key in ("mixup", "cutmix") if getattr(run.trainer, key)]
    if not mixing:
        return
    for term in loss_terms:
        if needed := [need for need in term.loss.inputs if need in ("labels", "index")]:
            raise ValueError(
                f"{mixing[0]}: loss.{term.name} needs the {needed[0]} of each image, and a mixed image has two; "
                "omit mixing or that loss"
            )


def optimizer(run: RunConfig | TeacherTrainConfig, key: str = "optim") -> tuple[MakeOptimizer, tuple[str, ...]]:
    """A factory of the optimizer of a run or of the teacher's training, and which parameters are excluded from weight decay.

    Args:
        key: of its node, for errors.

    Raises:
        ValueError: unknown optimizer, or an argument that it does not accept.
    """
    node = run.optim
    _check_chosen(key, node, "adamw")
    no_decay = node.get("no_decay") or ()
    make = instantiate(key, {k: v for k, v in node.items() if k != "no_decay"}, partial=True)
    if not isinstance(no_decay, list | tuple):
        raise ValueError(f"{key}.no_decay={no_decay}: a list such as [norm,bias] is needed")
    try:
        check_optimizer(make, no_decay)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return make, tuple(no_decay)


def schedule(run: RunConfig | TeacherTrainConfig, key: str = "schedule") -> Schedule:
    """The learning-rate schedule of a run or of the teacher's training.

    Args:
        key: of its node, for errors.

    Raises:
        ValueError: there is none, or an argument is wrong.
    """
    _check_chosen(key, run.schedule, "cosine")
    return instantiate(key, run.schedule)


def _check_chosen(key: str, node: Any, example: str) -> None:
    """Raises ValueError unless a component is a node with a `_target_`; shows how one is chosen from its group."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        group = key.rpartition(".")[2]
        name = node if isinstance(node, str) else example
        choice = f"{group}={name}" if group == key else f"{group}@{key}={name}"
        raise ValueError(f"{key} is {node!r}; a node with a `_target_` is needed, for example {choice}")


def trackers(run: RunConfig) -> dict[str, Tracker]:
    """The run's trackers by their names in the configuration, not started. Raises ValueError for an unknown tracker or one that is not installed."""
    for name, node in run.tracker.items():
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            raise ValueError(f"tracker.{name} is {node!r}; a node with a `_target_` is needed")
    return {name: instantiate(f"tracker.{name}", node) for name, node in run.tracker.items()}


def network(key: str, node: Mapping[str, Any], seed: int) -> nn.Module:
    """A model, initialised by `seed` alone."""
    with seeded(seed):
        model = instantiate(key, {k: v for k, v in node.items() if k != "name"})
    if not isinstance(model, nn.Module):
        raise ValueError(f"{key}._target_={node['_target_']} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def networks(run: RunConfig) -> Networks:
    """Student and teacher with layers and losses, checked by a forward pass of one blank image through each.

    Raises:
        ValueError: unknown layer, a layer whose feature is not a map, shapes that a loss cannot compare, wrong number of classes.
    """
    image = (run.data["channels"], run.data["size"], run.data["size"])
    student = network("model", run.model, run.seed)
    teacher = None if run.teacher.model is None else network("teacher.model", run.teacher.model, run.teacher.seed)
    loss_terms = terms(run, [student] if teacher is None else [student, teacher])
    _check_layers(loss_terms, "student", student)
    student_shapes = _shapes("student", student, [p.student for t in loss_terms for p in t.pairs], image)
    _check_classes("model", student_shapes, run.data["num_classes"])
    teacher_shapes = {}
    if teacher is not None:
        teacher_terms = [t for t in loss_terms if t.loss.source == "teacher"]
        _check_layers(teacher_terms, "teacher", teacher)
        teacher_shapes = _shapes("teacher", teacher, [p.teacher for t in teacher_terms for p in t.pairs], image)
        _check_classes("teacher.model", teacher_shapes, run.data["num_classes"])
        if run.cache.views:
            _check_cacheable(teacher)
    with seeded(run.seed):
        distiller = Distiller(student, loss_terms, student_shapes, teacher_shapes)
    for spec in distiller.target_specs:
        _check_plan(spec, teacher_shapes[spec.layer])
    check_saveable(student)
    check_resumable(distiller)
    return Networks(distiller, teacher, student_shapes, teacher_shapes)


def _check_plan(spec: TargetSpec, teacher_shape: Shape) -> None:
    """Raises ValueError if a loss cannot compare two shapes."""
    name, shapes = spec.key.split(":")[0], (spec.student_shape, teacher_shape)
    try:
        spec.loss.spec(*shapes)
        if spec.loss.normalises_maps and any(shape[1:] == (1, 1) for shape in shapes):
            raise ValueError(
                f"maps of {shown(shapes[0])} (student) and {shown(shapes[1])} (teacher) are to be compared, but a map of 1×1 "
                "scaled to unit length is always the same: name earlier layers as "
                f"loss.{name}.layers=[{{teacher: …, student: …}}]; `nst layers` lists pairs that fit"
            )
    except ValueError as error:
        raise ValueError(f"loss.{name}, teacher layer '{spec.layer}': {error}") from error


def _check_layers(loss_terms: list[Term], side: str, model: nn.Module) -> None:
    for term in loss_terms:
        for pair in term.pairs:
            try:
                resolve(model, pair.student if side == "student" else pair.teacher)
            except ValueError as error:
                raise ValueError(f"loss.{term.name}.layers, {side}: {error}") from error


def _shapes(side: str, model: nn.Module, layers: list[str], image: tuple[int, int, int]) -> dict[str, Shape]:
    for name, p in model.named_parameters():
        if p.is_floating_point() and p.dtype != torch.float32:
            raise ValueError(
                f"{side}: its parameter {name} is {p.dtype}; images and losses are float32, so that is needed"
            )
    try:
        return feature_shapes(model, [*layers, LOGITS], image, trained=side == "student")
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{side} on images of shape {image}: {error}") from error


def _check_classes(key: str, shapes: dict[str, Shape], classes: int) -> None:
    if shapes[LOGITS] != (classes,):
        raise ValueError(
            f"{key}: its output has shape {shapes[LOGITS]} an image, data.num_classes={classes} needs ({classes},)"
        )


def _check_cacheable(teacher: nn.Module) -> None:
    """Raises ValueError for a teacher whose output for an image depends on its batch."""
    for name, module in teacher.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"teacher.model: its batch norm {name} has no running statistics, so its output for an image depends on the batch "
                "and cannot be cached; use cache.views=0"
            )


def check_evaluation(settings: EvaluateConfig) -> None:
    """Raises ValueError for wrong settings of an evaluation."""
    check_numbers(settings, "")
    for group in ("model", "data"):
        _check_component(group, getattr(settings, group))
    check_ranges(settings, "")
    check_pair("", settings, settings.data["channels"])
    classes = [node.get("num_classes") for node in (settings.model, settings.data)]
    if None not in classes and classes[0] != classes[1]:
        raise ValueError(f"model.num_classes={classes[0]}, but data.num_classes={classes[1]}: they must be the same")


def dataset(run: RunConfig | EvaluateConfig) -> Dataset:
    """Read the data.

    Raises:
        ValueError: names the file or key at fault.
    """
    check_numbers(run.data, "data")
    return instantiate("data", run.data)


def loader(run: RunConfig, ranks: Dist, data: Dataset, split: str, views: Tensor | None = None) -> Loader:
    """This rank's loader of a split: "train" shuffled and augmented, the others unchanged.

    Args:
        views: [images, K], the training views to draw from; None: all.
    """
    train = split == "train"
    batches = data.split(split).loader(
        run.trainer.batch_size if train else run.trainer.eval_batch_size,
        train=train,
        seed=run.seed,
        rank=ranks.rank,
        world=ranks.world,
        device=ranks.device,
        channels_last=run.trainer.channels_last,
        views=views,
        workers=run.trainer.workers,
    )
    if not train or not (run.trainer.mixup or run.trainer.cutmix):
        return batches
    return MixingLoader(batches, data.train, data.num_classes, run.trainer.mixup, run.trainer.cutmix)


def trainer(run: RunConfig, distiller: Distiller, source: Teacher, loader: Loader, ranks: Dist) -> Trainer:
    """The trainer of the run's student, with its optimizer and schedule."""
    make, no_decay = optimizer(run)
    return Trainer(
        distiller, source, loader, optimizer=make, schedule=schedule(run),
        settings=run.trainer, ranks=ranks, seed=run.seed, no_decay=no_decay,
    )  # fmt: skip


def init_memory(run: RunConfig, distiller: Distiller, num_images: int) -> None:
    """Let losses allocate their buffers with one row per training image."""
    with seeded(run.seed):
        for loss in distiller.losses.values():
            assert isinstance(loss, TransferLoss)
            loss.init_memory(num_images)


def count_parameters(model: nn.Module) -> int:
    """Values of all parameters, trainable or not."""
    return sum(p.numel() for p in model.parameters())


def without_weights(node: Mapping[str, Any]) -> dict[str, Any]:
    """A model's node that needs no download to be built: `pretrained` off."""
    return {**node, "pretrained": False} if "pretrained" in node else dict(node)
