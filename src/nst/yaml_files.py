"""YAML files of others, looked through before they are read: a small one must not grow, nor name what is no plain value."""

from pathlib import Path

import yaml

_LARGEST = 2**20  # bytes of a file
_MOST = 100_000  # values, counted as often as aliases repeat them
_PLAIN = "tag:yaml.org,2002:"


def check_yaml(file: Path) -> None:
    """Raises ValueError, naming the file, for what is no YAML, holds other than plain values, or grows by its aliases."""
    if (size := file.stat().st_size) > _LARGEST:
        raise ValueError(f"{file}: {size:,} bytes; a configuration file of up to {_LARGEST:,} is needed")
    try:
        root = yaml.compose(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        values = 0 if root is None else _count(root, {})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: no YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{file}: its values are nested too deeply, or hold themselves") from None
    except _NotPlain as error:
        raise ValueError(f"{file}: {error}; plain values are needed, nothing is called that a tag names") from None
    if values > _MOST:
        raise ValueError(
            f"{file}: with its aliases (*name) written out it has {values:,} values; up to {_MOST:,} are read"
        )


class _NotPlain(Exception):
    """A tag and its line."""


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """The values of a node with all aliases written out; each node is visited once."""
    if id(node) in known:
        return known[id(node)]
    tag = node.tag.removeprefix(_PLAIN)
    if tag not in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"):
        raise _NotPlain(f"line {node.start_mark.line + 1} has the tag {node.tag}")
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    known[id(node)] = total = 1 + sum(_count(part, known) for part in inner)
    return total
