"""Which code a stored configuration may call: the project's networks and data, and targets that the user allows by name.

A configuration that a user writes is trusted like the user's code; one in the folder of a run is not.
"""

import inspect
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from torch import nn

from nst.data.dataset import Dataset

TARGET = "_target_"


def check_targets(nodes: Mapping[str, Any], file: Path, allow: Collection[str] = ()) -> None:
    """Check every `_target_` in a stored configuration, at any depth; none of the targets is imported or called.

    Args:
        nodes: plain values, as read from `file`, by the key where they stand in it.
        allow: targets that the user trusts.

    Raises:
        ValueError: a target that is neither a network or data set of this project nor allowed, or an interpolation.
    """
    for key, node in nodes.items():
        if not isinstance(node, Mapping) or not isinstance(node.get(TARGET), str):
            raise ValueError(f"{file}: {key} is {_short(node)}; settings with a `{TARGET}` are needed")
    for key, node in _all_nodes(nodes):
        if isinstance(node, str) and "${" in node:
            raise ValueError(f"{file}: {key} is {_short(node)}, an interpolation; stored settings are plain values")
    refused = foreign_targets(nodes, allow)
    if refused:
        key, target = next(iter(refused.items()))
        names = list(dict.fromkeys([*allow, *refused.values()]))
        raise ValueError(
            f"{file}: {key} is {target!r}, which is no network or data set of this project: reading the file would run that "
            f"code. If you trust it, allow it by name: allow=[{','.join(names)}], in Python allow={names}"
        )


def foreign_targets(nodes: Mapping[str, Any], allow: Collection[str] = ()) -> dict[str, str]:
    """The targets in these nodes, at any depth, that are no networks or data sets of this project and not allowed, by their keys."""
    return {
        f"{key}.{TARGET}": str(node[TARGET])[:80]
        for key, node in _all_nodes(nodes)
        if isinstance(node, Mapping) and TARGET in node and not _may_call(node[TARGET], allow)
    }


def _all_nodes(nodes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """These nodes and all inside of them, each with its dotted key."""
    found = list(nodes.items())
    for key, node in found:  # which grows
        inner = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
        found += [(f"{key}.{name}", value) for name, value in inner]
    return found


def _may_call(target: Any, allow: Collection[str]) -> bool:
    return isinstance(target, str) and (target in allow or _is_ours(target))


def _is_ours(target: str) -> bool:
    """Whether a dotted name is a network class, or a function that returns a network or a data set, defined in this package.

    Only modules of this package are imported for this check; names that they import from elsewhere do not count.
    """
    module, _, name = target.rpartition(".")
    if not any(module == home or module.startswith(f"{home}.") for home in ("nst.models", "nst.data")):
        return False
    try:
        target_object = getattr(import_module(module), name, None)
    except ImportError:
        return False
    if not str(getattr(target_object, "__module__", "")).startswith(("nst.models.", "nst.data.")):
        return False
    result_class = (
        target_object
        if isinstance(target_object, type)
        else get_type_hints(target_object).get("return")
        if inspect.isroutine(target_object)
        else None
    )
    return isinstance(result_class, type) and issubclass(result_class, nn.Module | Dataset)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
