"""Configuration → components and the terms of a loss: calls `_target_`, resolves roles to pairs of layers."""

import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from torch import nn

from nst.config import RunConfig
from nst.distiller import Pair, Term
from nst.layers import LOGITS
from nst.losses import TransferLoss
from nst.seeds import seeded

LAYER_NAMES = (
    "last",
    "stages",
    "last_out",
    "stages_out",
    "stage2_out",
    "pooled",
)  # names that the shipped losses use for their layers


def instantiate(key: str, node: Mapping[str, Any], partial: bool = False) -> Any:
    """Call a node's `_target_`, or with `partial` return it as a partial; the error of a wrong argument names `key`."""
    try:
        return hydra.utils.instantiate({**node}, _convert_="all", _partial_=partial)
    except InstantiationException as error:
        _check_target(f"{key}._target_", node.get("_target_"))
        raise ValueError(f"{key}: {error.__cause__ or error}") from error


def _check_target(key: str, target: Any) -> None:
    """Raises ValueError for a name that its module, which could be imported, does not have; names the nearest that it has."""
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    loaded = sys.modules.get(module)
    if loaded is not None and not hasattr(loaded, name):
        nearest = difflib.get_close_matches(name, [known for known in vars(loaded) if not known.startswith("_")], n=1)
        hint = f"; did you mean {module}.{nearest[0]}?" if nearest else ""
        raise ValueError(f"{key}={target}: {getattr(loaded, '__file__', module)} has no {name}{hint}")


def check_name(key: str, name: Any) -> None:
    """Raises ValueError unless `name` can be one component of a path."""
    if not isinstance(name, str) or not re.fullmatch(r"[^\W_.-][\w.+-]{0,99}", name):
        raise ValueError(
            f"{key} is {name!r}; it is part of folder names, so up to 100 letters, digits, '_', '-', '+' or '.' are needed, the first one "
            "a letter or digit"
        )


def terms(run: RunConfig, models: Sequence[nn.Module] = ()) -> list[Term]:
    """The terms of the run's loss, in order; those of weight 0 are left out.

    Args:
        models: student and teacher, to resolve `stages`; without them `stages` is one pair.
    """
    with seeded(run.seed):
        built = [_term(name, node, models) for name, node in run.loss.items()]
    return [term for term in built if term.weight > 0]


def resolve_layers(run: RunConfig) -> None:
    """Resolve the run's key `layers` into the layers of every loss.

    `layers` applies to all losses without their own, even where their node has no such key: a list of pairs, a layer that both
    networks have, or a mapping from the names that losses use to either.
    """
    if not run.layers:
        raise ValueError(
            f"layers={run.layers}: a layer such as last, pooled or stages, or at least one pair of layers is needed"
        )
    named = run.layers if isinstance(run.layers, Mapping) else {"last": run.layers}
    for name in named:
        nearest = difflib.get_close_matches(str(name), LAYER_NAMES, n=1, cutoff=0.5)
        if name not in LAYER_NAMES and not any(_layers_of(node) == name for node in run.loss.values()):
            hint = (
                f"did you mean {nearest[0]}?"
                if nearest
                else f"losses use {', '.join(LAYER_NAMES)}, or the names in their own layers"
            )
            raise ValueError(f"layers.{name}: no loss uses this name; {hint}")
    for name, node in run.loss.items():
        if not isinstance(node, dict):
            continue
        # A run whose layers are the default keeps its identity: nothing is added.
        if "layers" not in node and named.get("last", "last") != "last" and _compares_layers(name, node):
            node["layers"] = None
        if "layers" in node:
            layers = "last" if node["layers"] is None else node["layers"]
            node["layers"] = named.get(layers, layers) if isinstance(layers, str) else layers


def _compares_layers(name: str, node: Mapping[str, Any]) -> bool:
    if "_target_" not in node:
        return False
    return not getattr(_loss(f"loss.{name}", node), "on_logits", True)


def _loss(key: str, node: Mapping[str, Any]) -> Any:
    return instantiate(key, {k: v for k, v in node.items() if k not in ("weight", "layers")})


def _layers_of(node: Any) -> Any:
    return node.get("layers") if isinstance(node, Mapping) else None


def _pairs(key: str, layers: Any, models: Sequence[nn.Module]) -> tuple[Pair, ...]:
    """The pairs of a loss: of a list, or of a layer's name on both sides."""
    if isinstance(layers, str):
        return _of_stages(key, Pair(layers, layers), models)
    if not isinstance(layers, list | tuple) or not layers:
        raise ValueError(
            f"{key}={layers!r}: a layer such as last, pooled or stages, or a list of pairs of layers is needed"
        )
    return tuple(pair for node in layers for pair in _of_stages(key, _pair(key, node), models))


def _of_stages(key: str, pair: Pair, models: Sequence[nn.Module]) -> tuple[Pair, ...]:
    """`stages`, `stages_pre_relu` and `stages_out` stand for all stages that both networks have so; any other pair for itself."""
    matches = [re.fullmatch("stages(_pre_relu|_out|)", side) for side in (pair.student, pair.teacher)]
    if not any(matches):
        return (pair,)
    if not all(matches):
        raise ValueError(
            f"{key}: teacher {pair.teacher}, student {pair.student}: name all stages on both sides, or one layer"
        )
    student, teacher = (match.group(1) for match in matches if match)
    named = [getattr(model, "named_layers", {}) for model in models]
    stages = [
        k
        for k in range(1, 100 if models else 2)
        if all(f"stage{k}{suffix}" in names for names, suffix in zip(named, (student, teacher), strict=False))
    ]
    if not stages:
        raise ValueError(
            f"{key}={pair.teacher if pair.teacher == pair.student else pair}: teacher and student have no stages in common; name pairs of "
            "layers, `nst layers` lists them"
        )
    return tuple(Pair(f"stage{k}{teacher}", f"stage{k}{student}", pair.weight) for k in stages)


def _term(name: str, node: Any, models: Sequence[nn.Module]) -> Term:
    key = f"loss.{name}"
    check_name(f"{key}: its name", name)
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(
            f"{key} is {node!r}; a term with `weight` and `_target_` is needed. Choose the loss that has it (loss={name}); "
            "pairs of layers for all losses at once: layers=[{teacher: last, student: last}]"
        )
    weight = node.get("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ValueError(f"{key}.weight={weight!r}: a finite number, 0 or more, is needed")
    loss = _loss(key, node)
    if not isinstance(loss, TransferLoss):
        raise ValueError(f"{key}._target_={node['_target_']}: a nst.losses.TransferLoss is needed")
    if getattr(loss, "projects", False):
        raise ValueError(
            f"{key}: `projects` is gone; make the 1×1 convolution in setup(student_shape, teacher_shape) and apply it in forward"
        )
    if loss.on_logits:
        if node.get("layers"):
            raise ValueError(f"{key}.layers: this loss works on the logits and takes no layers")
        return Term(name, loss, float(weight), (Pair(LOGITS, LOGITS),))
    return Term(name, loss, float(weight), _pairs(f"{key}.layers", node.get("layers", "last"), models))


def _pair(key: str, node: Any) -> Pair:
    names = ("teacher", "student", "weight")
    if not isinstance(node, Mapping) or not {"teacher", "student"} <= set(node):
        raise ValueError(
            f"{key}: {node!r} found, entries like {{teacher: last, student: last, weight: 1.0}} are needed"
        )
    for name in node:
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=1)
            raise ValueError(f"{key}: unknown key {name!r}{f', did you mean {nearest[0]}?' if nearest else ''}")
    weight = node.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"{key}: weight={weight!r}: a positive number is needed")
    return Pair(str(node["teacher"]), str(node["student"]), float(weight))
