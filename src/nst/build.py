"""Configuration → objects. The only place that instantiates components; everything below takes objects."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hydra.utils
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nst.config import EvaluateConfig, KnowledgeConfig, RunConfig, check_values
from nst.data.batch import Loader
from nst.data.dataset import Dataset
from nst.distiller import Distiller, Pair, Term
from nst.layers import shown
from nst.losses import Shape, TransferLoss
from nst.taps import LOGITS, feature_shapes, resolve
from nst.training.ranks import Ranks


@dataclass(frozen=True)
class Networks:
    """The networks of a run, wired: no data has been read, no weights loaded."""

    distiller: Distiller
    teacher: nn.Module | None
    student_shapes: dict[str, Shape]  # tap → (C, H, W) of one image
    teacher_shapes: dict[str, Shape]


def settings(cfg: DictConfig) -> RunConfig:
    """The composed configuration, resolved and checked.

    A teacher that no term asks for is dropped, so that `loss=ce` is plain training whatever `teacher` says.

    Raises:
        ValueError: naming the key, what was found and what would be right.
    """
    run = OmegaConf.to_object(cfg)
    if not isinstance(run, RunConfig):
        raise ValueError(f"a composed run configuration is needed, found {type(run).__name__}")
    check_values(run)
    for group in ("model", "data"):
        _check_component(group, getattr(run, group))
    if not any(term.weight > 0 for term in terms(run)):
        raise ValueError("loss: no term with a positive weight; choose for example loss=ce or loss=nst_poly")
    asking = [term.name for term in terms(run) if term.loss.source == "teacher"]
    if not asking:
        run.teacher.model, run.teacher.weights = None, None
        run.knowledge = KnowledgeConfig()
    elif run.teacher.model is None:
        raise ValueError(
            f"loss.{asking[0]} learns from a teacher, but teacher=none; add teacher=resnet56, or use loss=ce"
        )
    else:
        _check_component("teacher.model", run.teacher.model)
    classes = {
        f"{key}.num_classes": node["num_classes"]
        for key, node in (("data", run.data), ("model", run.model), ("teacher.model", run.teacher.model))
        if node is not None and "num_classes" in node
    }
    if len(set(classes.values())) > 1:
        found = ", ".join(f"{key}={value}" for key, value in classes.items())
        raise ValueError(f"teacher, student and data need the same number of classes, found {found}")
    return run


def _check_component(key: str, node: Any) -> None:
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ValueError(
            f"{key} is {node!r}; a node with a `_target_` is needed, for example one of configs/{key.partition('.')[0]}"
        )
    if not isinstance(node.get("name"), str) or not node["name"] or "/" in node["name"]:
        raise ValueError(
            f"{key}.name is {node.get('name')!r}; a short name without slashes is needed: folders carry it"
        )


def instantiate(key: str, node: Mapping[str, Any]) -> Any:
    """Call a node's `_target_`; the error of a wrong argument names `key`."""
    try:
        return hydra.utils.instantiate({**node}, _convert_="all")
    except InstantiationException as error:
        raise ValueError(f"{key}: {error.__cause__ or error}") from error


def terms(run: RunConfig) -> list[Term]:
    """The terms of the run's loss, in order; those of weight 0 are left out."""
    built = [_term(name, node) for name, node in run.loss.items()]
    return [term for term in built if term.weight > 0]


def _term(name: str, node: Any) -> Term:
    key = f"loss.{name}"
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"{key} is {node!r}; a term with `weight` and `_target_` is needed")
    weight = node.get("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ValueError(f"{key}.weight={weight!r}: a finite number, 0 or more, is needed")
    loss = instantiate(key, {k: v for k, v in node.items() if k not in ("weight", "taps")})
    if not isinstance(loss, TransferLoss):
        raise ValueError(f"{key}._target_={node['_target_']}: a nst.losses.TransferLoss is needed")
    if loss.on_logits:
        if node.get("taps"):
            raise ValueError(f"{key}.taps: this loss works on the logits and takes no taps")
        return Term(name, loss, float(weight), (Pair(LOGITS, LOGITS),))
    pairs = tuple(_pair(f"{key}.taps", pair) for pair in node.get("taps") or [{"teacher": "last", "student": "last"}])
    return Term(name, loss, float(weight), pairs)


def _pair(key: str, node: Any) -> Pair:
    names = ("teacher", "student", "weight")
    if not isinstance(node, Mapping) or not {"teacher", "student"} <= set(node):
        raise ValueError(
            f"{key}: {node!r} found, entries like {{teacher: last, student: last, weight: 1.0}} are needed"
        )
    for name in node:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            raise ValueError(f"{key}: unknown key {name!r}{f', did you mean {near[0]}?' if near else ''}")
    weight = node.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"{key}: weight={weight!r}: a positive number is needed")
    return Pair(str(node["teacher"]), str(node["student"]), float(weight))


def network(key: str, node: Mapping[str, Any], seed: int) -> nn.Module:
    """A model, initialised by `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = instantiate(key, {k: v for k, v in node.items() if k != "name"})
    if not isinstance(model, nn.Module):
        raise ValueError(f"{key}._target_={node['_target_']} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def networks(run: RunConfig) -> Networks:
    """Student and teacher, tapped and wired, checked by one blank image through each.

    Raises:
        ValueError: unknown layer, a tap that yields no map, shapes that a loss cannot compare, wrong class counts.
    """
    wanted = terms(run)
    image = (run.data["channels"], run.data["size"], run.data["size"])
    student = network("model", run.model, run.seed)
    _check_taps(wanted, "student", student)
    student_shapes = _shapes("student", student, [p.student for t in wanted for p in t.pairs], image)
    _check_classes("model", student_shapes, run.data["num_classes"])
    teacher, teacher_shapes = None, {}
    if run.teacher.model is not None:
        teacher = network("teacher.model", run.teacher.model, run.teacher.seed)
        _check_taps([t for t in wanted if t.loss.source == "teacher"], "teacher", teacher)
        asked = [p.teacher for t in wanted if t.loss.source == "teacher" for p in t.pairs]
        teacher_shapes = _shapes("teacher", teacher, asked, image)
        _check_classes("teacher.model", teacher_shapes, run.data["num_classes"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        distiller = Distiller(student, wanted, student_shapes, teacher_shapes)
    for request in distiller.requests:
        shapes = (request.student_shape, teacher_shapes[request.tap])
        try:
            request.loss.plan(*shapes)
            if request.loss.normalises_maps and any(shape[1:] == (1, 1) for shape in shapes):
                raise ValueError(
                    f"maps of {shown(shapes[0])} (student) and {shown(shapes[1])} (teacher) are to be compared, but a map of 1×1 "
                    "scaled to unit length is the same whatever the network says: name earlier layers as "
                    f"loss.{request.key.split(':')[0]}.taps=[{{teacher: …, student: …}}]; scripts/layers.py lists what fits"
                )
        except ValueError as error:
            raise ValueError(f"loss.{request.key.split(':')[0]}, teacher layer '{request.tap}': {error}") from error
    return Networks(distiller, teacher, student_shapes, teacher_shapes)


def _check_taps(wanted: list[Term], side: str, model: nn.Module) -> None:
    for term in wanted:
        for pair in term.pairs:
            try:
                resolve(model, pair.student if side == "student" else pair.teacher)
            except ValueError as error:
                raise ValueError(f"loss.{term.name}.taps, {side}: {error}") from error


def _shapes(who: str, model: nn.Module, taps: list[str], image: tuple[int, int, int]) -> dict[str, Shape]:
    try:
        return feature_shapes(model, [*taps, LOGITS], image)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{who} on images of shape {image}: {error}") from error


def _check_classes(key: str, shapes: dict[str, Shape], classes: int) -> None:
    if shapes[LOGITS] != (classes,):
        raise ValueError(
            f"{key}: its output has shape {shapes[LOGITS]} an image, data.num_classes={classes} needs ({classes},)"
        )


def dataset(run: RunConfig | EvaluateConfig) -> Dataset:
    """Read the data.

    Raises:
        ValueError: naming the file or the key at fault.
    """
    return instantiate("data", run.data)


def loader(run: RunConfig, here: Ranks, data: Dataset, split: str, views: Tensor | None = None) -> Loader:
    """This rank's way through a split: "train" shuffled and in changing views, the others as they are.

    Args:
        views: [images, K], to draw the training views from; None: all.
    """
    train = split == "train"
    return data.split(split).loader(
        run.trainer.batch_size if train else run.trainer.eval_batch_size,
        train=train,
        seed=run.seed,
        rank=here.rank,
        world=here.world,
        device=here.device,
        channels_last=run.trainer.channels_last,
        views=views,
        workers=run.trainer.workers,
    )


def count_parameters(model: nn.Module) -> int:
    """Values of all parameters, trainable or not."""
    return sum(p.numel() for p in model.parameters())
