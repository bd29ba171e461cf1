"""Untrusted YAML files are checked before they are read: no expansion by aliases, no tags other than plain values."""

from pathlib import Path

import yaml

_LARGEST = 2**20  # bytes of a file
_MOST = 100_000  # values, with aliases expanded
_PLAIN = "tag:yaml.org,2002:"


def check_yaml(file: Path) -> None:
    """Raises ValueError with the file's name for invalid YAML, other than plain values, or expansion by aliases."""
    if (size := file.stat().st_size) > _LARGEST:
        raise ValueError(f"{file}: {size:,} bytes; a configuration file of up to {_LARGEST:,} is needed")
    try:
        root = yaml.compose(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        values = 0 if root is None else _count(root, {})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: invalid YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{file}: its values are nested too deeply, or hold themselves") from None
    except _NotPlain as error:
        raise ValueError(f"{file}: {error}; plain values are needed: tags are never executed") from None
    if values > _MOST:
        raise ValueError(
            f"{file}: with its aliases (*name) written out it has {values:,} values; up to {_MOST:,} are read"
        )


class _NotPlain(Exception):
    """A tag and its line."""


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """The values of a node with all aliases written out; each node is visited once."""
    if id(node) in counts:
        return counts[id(node)]
    tag = node.tag.removeprefix(_PLAIN)
    if tag not in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"):
        raise _NotPlain(f"line {node.start_mark.line + 1} has the tag {node.tag}")
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    counts[id(node)] = total = 1 + sum(_count(child, counts) for child in inner)
    return total
