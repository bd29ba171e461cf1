"""Configuration → objects: the only place that instantiates components. All modules below take objects."""

import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import hydra.utils
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nst.config import (
    START,
    UNNAMED,
    CacheConfig,
    EvaluateConfig,
    RunConfig,
    TeacherConfig,
    TrainerConfig,
    check_pair,
    check_ranges,
    check_values,
    renamed,
)
from nst.data.batch import Loader, MixingLoader
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.distiller import Distiller, Term, seeded
from nst.evaluate import TAKEN, Metric
from nst.layers import LOGITS, Pair, assign_layers, feature_shapes, pairs_of, resolve, shown
from nst.losses import Shape, TransferLoss
from nst.models.external import resize_inputs
from nst.models.parts import NoClassifier, classifier_names, freeze
from nst.models.weights import check_saveable, load_weights, recorded_size
from nst.optim import check_optimizer, rate_factors
from nst.storage.trackers import Tracker

NAME = re.compile(r"[^\W_.-][\w.+-]{0,99}")  # what can be one component of a path


@dataclass(frozen=True)
class Networks:
    """The networks of a run, wired: no data has been read, no weights loaded."""

    distiller: Distiller
    teacher: nn.Module | None
    student_shapes: dict[str, Shape]  # layer → (C, H, W) of one image
    teacher_shapes: dict[str, Shape]


def settings(cfg: DictConfig) -> RunConfig:
    """The composed configuration, resolved and checked as far as that goes without making an object.

    A teacher that no term needs is dropped, so that `loss=ce` is plain training with any `teacher`.

    Raises:
        ValueError: names the key, its value and a correct one.
    """
    run = OmegaConf.to_object(cfg)
    assert isinstance(run, RunConfig)
    _check_keys(cfg, run, "")
    check_values(run)
    check_component("model", run.model)
    check_component("data", run.data)
    for key in ("num_classes", "channels", "size"):
        if type(number := run.data.get(key, 1)) is not int or number < 1:
            raise ValueError(f"data.{key}={number}: a whole number, at least 1, is needed")

    # the terms, by the classes of their losses
    losses: dict[str, type[TransferLoss]] = {}
    for name, node in run.loss.items():
        if not isinstance(node, Mapping) or "_target_" not in node or not NAME.fullmatch(str(name)):
            raise ValueError(f"loss.{name} is {node!r}; a term with `weight` and `_target_` is needed")
        weight = node.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"loss.{name}.weight={weight!r}: a finite number, 0 or more, is needed")
        made = instantiate(f"loss.{name}", {"_target_": node["_target_"]}, partial=True).func
        if not isinstance(made, type) or not issubclass(made, TransferLoss):
            raise ValueError(f"loss.{name}._target_={node['_target_']}: no subclass of nst.losses.TransferLoss")
        if made.on_logits and node.get("layers"):
            raise ValueError(f"loss.{name}.layers: this loss works on the logits and takes no layers")
        losses[name] = made
    if not (used := {name: loss for name, loss in losses.items() if run.loss[name]["weight"] > 0}):
        raise ValueError("loss: no term with a positive weight; choose for example loss=ce or loss=nst_poly")
    assign_layers(run.layers, run.loss, [name for name, loss in losses.items() if not loss.on_logits])

    # the teacher, and what it shares with student and data
    taught = [name for name, loss in used.items() if loss.source == "teacher"]
    if not taught:
        run.teacher.model, run.teacher.weights, run.cache = None, None, CacheConfig()
    elif run.teacher.model is None:
        raise ValueError(f"loss.{taught[0]} learns from a teacher, but teacher=none; use for example loss=ce")
    else:
        check_component("teacher.model", run.teacher.model)
        check_pair("teacher.", run.teacher, run.data["channels"])
    nodes = {"data": run.data, "model": run.model, "teacher.model": run.teacher.model or {}}
    classes = {f"{key}.num_classes": number for key, node in nodes.items() if (number := node.get("num_classes"))}
    classifying = [term.name for term in terms(run) if term.classifies]
    if not classifying:
        run.model["features_only"] = True
    elif run.data.get("labeled") is False:
        data, key = run.data["name"], f"loss.{classifying[0]}"
        raise ValueError(f"data={data}: its images have no labels, but {key} needs labels or logits: {key}.weight=0")
    elif len(set(map(repr, classes.values()))) > 1:
        values = ", ".join(f"{key}={value}" for key, value in classes.items())
        raise ValueError(f"teacher, student and data need the same number of classes, found {values}")

    # what batches must be
    mixing = [f"trainer.{key}={getattr(run.trainer, key)}" for key in ("mixup", "cutmix") if getattr(run.trainer, key)]
    for name, loss in used.items():
        if loss.relational and run.trainer.accumulate > 1:
            raise ValueError(f"trainer.accumulate={run.trainer.accumulate}: loss.{name} relates all images of a batch")
        if mixing and (needed := [need for need in loss.inputs if need in ("labels", "index")]):
            raise ValueError(f"{mixing[0]}: loss.{name} needs the {needed[0]} of each image, and a mixed image has two")
    return run


def _check_keys(cfg: DictConfig, run: Any, prefix: str) -> None:
    """Raises ValueError for a key that is not in the schema: Hydra accepts any `+key=value`."""
    names = [f.name for f in fields(run)]
    for key in map(str, cfg):
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1) or names
            unknown = f"{prefix}{key}: unknown key; did you mean {' or '.join(near)}?"
            raise ValueError(renamed(f"{prefix}{key}") or unknown)
        if is_dataclass(value := getattr(run, key)):
            _check_keys(cfg[key], value, f"{prefix}{key}.")


def check_component(key: str, node: Any, example: str | None = None) -> None:
    """Raises ValueError for a value that names no component; without an `example` it also needs a name for folders."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        example = example or f"one of configs/{key.partition('.')[0]}"
        raise ValueError(f"{key} is {node!r}; a node with a `_target_` is needed, for example {example}")
    if example is None and not NAME.fullmatch(str(name := node.get("name"))):
        raise ValueError(f"{key}.name is {name!r}; up to 100 letters, digits, '_', '-', '+' or '.' are needed")


def instantiate(key: str, node: Mapping[str, Any], partial: bool = False) -> Any:
    """A node's `_target_`, called or as a partial. Raises ValueError for a wrong argument or name, with the nearest name."""
    try:
        return hydra.utils.instantiate({**node}, _convert_="all", _partial_=partial)
    except InstantiationException as error:
        module, _, name = str(target := node["_target_"]).rpartition(".")
        loaded = sys.modules.get(module)
        if loaded is None or hasattr(loaded, name):
            raise ValueError(f"{key}: {error.__cause__ or error}") from error
        nearest = difflib.get_close_matches(name, [known for known in vars(loaded) if known[0] != "_"], n=1)
        hint = f"; did you mean {module}.{nearest[0]}?" if nearest else ""
        place = getattr(loaded, "__file__", module)
        raise ValueError(f"{key}._target_={target}: {place} has no {name}{hint}") from error


def terms(run: RunConfig, models: Sequence[nn.Module] = ()) -> list[Term]:
    """The run's terms of a weight above 0; `models`, student and teacher, resolve `stages`, which is one pair without them."""
    made: list[Term] = []
    with seeded(run.seed):
        for name, node in run.loss.items():
            key = f"loss.{name}"
            loss = instantiate(key, {k: v for k, v in node.items() if k not in ("weight", "layers")})
            on_layers = () if loss.on_logits else pairs_of(f"{key}.layers", node.get("layers", "last"), models)
            if loss.all_layers and any(pair.weight != 1 for pair in on_layers):
                raise ValueError(f"{key}.layers: it compares all layers at once, so a pair cannot have its own weight")
            made.append(Term(name, loss, float(node["weight"]), on_layers or (Pair(LOGITS, LOGITS),)))
    return [term for term in made if term.weight > 0]


def optimization(run: RunConfig, prefix: str = "", distiller: Distiller | None = None) -> dict[str, Any]:
    """What `nst.loop.Training` needs to optimise: `optimizer`, a factory; `schedule`; `no_decay` and `lr_factors`, of its parameters.

    Args:
        prefix: of the keys `optim` and `schedule` in errors.
        distiller: what is to be trained; with it the parts in `lr_factors` are checked.

    Raises ValueError for an unknown optimizer, schedule or part, or an argument that is not accepted.
    """
    for name, example in (("optim", "adamw"), ("schedule", "cosine")):
        node = getattr(run, name)
        group, choice = f"{name}@{prefix}{name}" if prefix else name, node if isinstance(node, str) else example
        check_component(f"{prefix}{name}", node, f"{group}={choice}")
    key, no_decay, factors = f"{prefix}optim", run.optim.get("no_decay") or (), run.optim.get("lr_factors") or {}
    if not isinstance(no_decay, list | tuple):
        raise ValueError(f"{key}.no_decay={no_decay}: a list such as [norm,bias] is needed")
    if not isinstance(factors, Mapping) or not all(
        isinstance(part, str) and type(f) in (int, float) and 0 < f < math.inf for part, f in factors.items()
    ):
        raise ValueError(f"{key}.lr_factors={factors}: factors above 0 by part are needed, such as {{fc: 10}}")
    make = instantiate(key, {k: v for k, v in run.optim.items() if k not in ("no_decay", "lr_factors")}, partial=True)
    try:
        check_optimizer(make, no_decay)
        if distiller is not None:
            rate_factors(distiller, factors)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    schedule = instantiate(f"{prefix}schedule", run.schedule)
    return {"optimizer": make, "schedule": schedule, "no_decay": tuple(no_decay), "lr_factors": factors}


def trackers(run: RunConfig) -> dict[str, Tracker]:
    """The run's trackers by name, not started. Raises ValueError for an unknown one, or one that is not installed."""
    for name, node in run.tracker.items():
        check_component(f"tracker.{name}", node, "tracker=tensorboard")
    return {name: instantiate(f"tracker.{name}", node) for name, node in run.tracker.items()}


def metrics(run: RunConfig) -> dict[str, Metric]:
    """The run's metrics by name. Raises ValueError for one that cannot be made, or would hide a value of the log."""
    for name, node in run.metric.items():
        check_component(f"metric.{name}", node, "metric=macro")
        if name in TAKEN:
            raise ValueError(f"metric.{name}: the log has a value of this name; give it another one")
    return {name: instantiate(f"metric.{name}", node, partial=True) for name, node in run.metric.items()}


def network(key: str, node: Mapping[str, Any], seed: int) -> nn.Module:
    """A model, initialised by `seed` alone; then `weights` are loaded into all but the parts `drop`, and the parts `freeze` are fixed.

    With `features_only` its classifier is left out; the names and shapes of its layers stay, and its output is what the classifier saw.

    Raises:
        ValueError: a wrong argument, weights that do not fit, an unknown part, no classifier that could be left out.
    """

    def arguments(node: Any) -> Any:  # of the constructor; of those of an ensemble's networks, too
        if not isinstance(node, Mapping):
            return node
        ours = ("name", "features_only", *START) if "_target_" in node else ()
        return {key: arguments(value) for key, value in node.items() if key not in ours}

    with seeded(seed):
        model = instantiate(key, arguments(node))
    if not isinstance(model, nn.Module):
        raise ValueError(f"{key}._target_={node['_target_']} made a {type(model).__name__}, not a torch.nn.Module")
    weights, drop, left_out = node.get("weights"), list(node.get("drop") or ()), list[str]()
    try:
        if node.get("features_only") and (classes := node.get("num_classes")) != 0:
            left_out = classifier_names(model, classes)
            if not left_out:
                raise ValueError(f"{type(model).__name__} ends in no linear classifier that could be left out")
        if weights is not None:
            load_weights(model, str(weights), node.get("weights_key"), [*drop, *left_out])
        elif drop:
            raise ValueError(f"drop={drop}: parts that weights=FILE leaves new; there are no weights")
        for name in left_out:
            model.set_submodule(name, NoClassifier())
        if node.get("freeze"):
            freeze(model, node["freeze"])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return model


def without_download(node: Mapping[str, Any]) -> dict[str, Any]:
    """A model's node that needs no download to be built: `pretrained` off, also in the networks of an ensemble."""
    nested = {key: without_download(value) if isinstance(value, Mapping) else value for key, value in node.items()}
    return nested | ({"pretrained": False} if "pretrained" in node else {})


def without_weights(node: Mapping[str, Any]) -> dict[str, Any]:
    """A model's node that needs no download and no file to be built: `pretrained` off, how it started left out."""
    return {key: value for key, value in without_download(node).items() if key not in START}


def networks(run: RunConfig, dist: Dist | None = None) -> Networks:
    """Student and teacher with layers and losses, checked by a forward pass of one blank image through each.

    Args:
        dist: with several ranks and `trainer.sync_bn`, batch norms over the global batch; None: one process.

    Raises:
        ValueError: unknown layer, a layer whose feature is not a map, shapes that a loss cannot compare, wrong number of classes.
    """
    student = network("model", run.model, run.seed)
    if synchronised := run.trainer.sync_bn and dist is not None and dist.world > 1:
        student = _synchronised(student, dist)
        if run.model.get("freeze"):  # the new modules
            freeze(student, run.model["freeze"])
    teacher = None if run.teacher.model is None else network("teacher.model", run.teacher.model, run.teacher.seed)
    if teacher is not None:
        size = run.teacher.input_size or recorded_size(run.teacher.weights)
        resize_inputs(teacher, None if size == run.data["size"] else size)
    made = terms(run, [student] if teacher is None else [student, teacher])
    student_shapes = _shapes(run, "student", student, made)
    teacher_shapes = {} if teacher is None else _shapes(run, "teacher", teacher, made)
    for name, module in [] if teacher is None or not run.cache.views else teacher.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(f"teacher.model: its {name} has no running statistics: use cache.views=0")
    with seeded(run.seed):
        distiller = Distiller(student, made, student_shapes, teacher_shapes)
    for loss in distiller.losses.values() if synchronised else ():
        if not getattr(loss, "relational", False):  # a relational one has the global batch already
            _synchronised(loss, dist)
    for spec in distiller.target_specs:
        shapes = spec.student_shape, teacher_shapes[spec.layer]
        try:
            spec.loss.target_shapes(*shapes)
            if spec.loss.normalises_maps and any(shape[1:] == (1, 1) for shape in shapes):
                student_map, teacher_map = map(shown, shapes)
                of = f"the student's map is {student_map}, the teacher's {teacher_map}"
                raise ValueError(f"{of}: of unit length, one of 1×1 is constant; take a layer before it (`nst layers`)")
        except ValueError as error:
            raise ValueError(f"loss.{spec.key.split(':')[0]}, teacher layer '{spec.layer}': {error}") from error
    check_saveable(student)
    check_saveable(distiller)
    return Networks(distiller, teacher, student_shapes, teacher_shapes)


def _synchronised(model: nn.Module, dist: Dist | None) -> nn.Module:
    """The model with torch's `SyncBatchNorm`; its parameters are the same. Raises ValueError where that would not do the same."""
    if dist is None or dist.device.type != "cuda":
        raise ValueError("trainer.sync_bn=true: torch synchronises batch norms on CUDA devices only; use one rank")
    for name, module in model.named_modules():
        plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) not in plain:
            raise ValueError(f"trainer.sync_bn=true: {name} is a {type(module).__name__}, no BatchNorm of torch's own")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _shapes(run: RunConfig, side: str, model: nn.Module, made: Sequence[Term]) -> dict[str, Shape]:
    """The shapes of a network's features. Raises ValueError for an unknown layer, and a network that does not fit the data."""
    names: list[str] = []
    modules = dict(model.named_modules())
    for term in made if side == "student" else [term for term in made if term.loss.source == "teacher"]:
        own = [getattr(pair, side) for pair in term.pairs]
        names += own
        once = [term.loss.teacher_layer] if side == "teacher" and term.loss.teacher_layer is not None else []
        for name in own + once:
            try:
                path = resolve(model, name)
            except ValueError as error:
                raise ValueError(f"loss.{term.name}.layers, {side}: {error}") from error
            if isinstance(modules.get(path), NoClassifier):
                raise ValueError(f"loss.{term.name}.layers, {side}: {name} is left out; its output is the layer logits")
    for name, p in model.named_parameters():
        if p.is_floating_point() and p.dtype != torch.float32:
            raise ValueError(f"{side}: its parameter {name} is {p.dtype}; float32 is needed")
    image, classes = (run.data["channels"], run.data["size"], run.data["size"]), run.data["num_classes"]
    try:
        shapes = feature_shapes(model, [*names, LOGITS], image, trained=side == "student")
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{side} on images of shape {image}: {error}") from error
    output, key = shapes[LOGITS], "model" if side == "student" else "teacher.model"
    if side == "student" and run.model.get("features_only"):
        if len(output) != 1:
            raise ValueError(f"model: without its classifier it gives {output} an image; a vector is needed")
    elif output != (classes,) and (side == "student" or LOGITS in names):
        raise ValueError(f"{key}: its output has shape {output} an image, data.num_classes={classes}")
    return shapes


def teacher_run(run: RunConfig) -> RunConfig:
    """The run that trains the teacher: its own recipe and seed; of the student's trainer only keys that do not change the result."""
    train = run.teacher.train
    shared = [key.removeprefix("trainer.") for key in UNNAMED if key.startswith("trainer.")]
    own = {key: getattr(train, key) for key in ("epochs", "batch_size", "precision", "sync_bn")}
    trainer = TrainerConfig(**{key: getattr(run.trainer, key) for key in shared}, **own)
    return replace(
        run, model=run.teacher.model, teacher=TeacherConfig(), cache=CacheConfig(), optim=train.optim, schedule=train.schedule,
        loss={"ce": {"weight": 1.0, "_target_": "nst.losses.CrossEntropy"}}, trainer=replace(trainer, profile=False),
        seed=run.teacher.seed,
    )  # fmt: skip


def dataset(run: RunConfig | EvaluateConfig) -> Dataset:
    """Read the data. Raises ValueError, naming the file or key at fault; for images without labels in a run that needs them."""
    check_ranges(run.data, "data.")
    data = instantiate("data", run.data)
    if isinstance(data, Dataset) and not data.labeled and not run.model.get("features_only"):
        raise ValueError(f"data={data.name}: its images have no labels, which are needed here")
    return data


def loader(run: RunConfig, dist: Dist, data: Dataset, split: str, views: Tensor | None = None) -> Loader:
    """This rank's loader of a split: "train" shuffled, augmented and mixed, the others unchanged.

    Args:
        views: [images, K], the training views to draw from; None: all.
    """
    trainer, train, mixing = run.trainer, split == "train", {}
    if train and (trainer.mixup or trainer.cutmix):
        mixing = {"num_classes": data.num_classes, "mixup": trainer.mixup, "cutmix": trainer.cutmix}
    size, ranks = trainer.batch_size if train else trainer.eval_batch_size, (dist.rank, dist.world, dist.device)
    rest = {"channels_last": trainer.channels_last, "views": views, "workers": trainer.workers, **mixing}
    return (MixingLoader if mixing else Loader)(data.split(split), size, train, run.seed, *ranks, **rest)


def count_parameters(model: nn.Module) -> int:
    """Values of all parameters, trainable or not."""
    return sum(p.numel() for p in model.parameters())
