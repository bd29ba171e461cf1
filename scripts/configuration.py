"""Write docs/tables/configuration.md from the schema in src/nst/config.py and the files in configs/.

python scripts/configuration.py
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import nst.config
from nst.config import RunConfig, documented

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tables" / "configuration.md"
INTRODUCTION = """\
# Configuration

Reference of every group and key of a run: type, default and meaning. This page is written by `python scripts/configuration.py` from
`src/nst/config.py` and `configs/`.

A run selects a file of each *group* (`model=resnet20`) and sets *keys* (`trainer.epochs=30`). The recipe of the data set sets defaults, an
experiment overrides it, and the command line overrides both. `nst train --cfg job --resolve` prints the resolved configuration, and
`dry_run=true` the plan of a run.
"""
EXTRA = ("experiment", "table")  # one file a cell of a table: only their folders are listed


def reference() -> str:
    """The whole page."""
    schemas: list[Any] = [
        schema for schema in vars(nst.config).values() if isinstance(schema, type) and dataclasses.is_dataclass(schema)
    ]
    keys = [_section(schema) for schema in schemas if schema.__module__ == nst.config.__name__]
    groups = sorted(path for path in (ROOT / "configs").iterdir() if path.is_dir() and path.name != "hydra")
    groups += sorted(path for path in (ROOT / "configs" / "hydra").iterdir() if path.name != "help")
    return "\n".join([INTRODUCTION, "## Keys\n", *filter(None, keys), "## Groups\n", *map(_group, groups)])


def _prefixes(schema: Any, within: Any, prefix: str = "") -> Iterator[str]:
    """The keys under which `within`, a run, holds a schema."""
    if schema is within:
        yield prefix.removesuffix(".")
    for field in dataclasses.fields(within):
        if dataclasses.is_dataclass(field.type):
            yield from _prefixes(schema, field.type, f"{prefix}{field.name}.")


def _section(schema: Any) -> str:
    summary = inspect.getdoc(schema) or ""
    keys = sorted(_prefixes(schema, RunConfig))
    title = " and ".join(f"`{key}`" for key in keys if key) or ("A run" if keys else re.findall("`[^`]+`", summary)[0])
    written = documented(schema)
    lines = [f"### {title}\n", f"{summary}\n", "| key | type | default | |", "|---|---|---|---|"]
    for field in dataclasses.fields(schema):
        if not dataclasses.is_dataclass(field.type):
            kind, comment = written[field.name]
            lines.append(f"| `{field.name}` | {_cell(kind)} | {_default(field)} | {_cell(comment)} |")
    return "\n".join(lines) + "\n" if len(lines) > 4 else ""


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return "must be given" if value == "???" else f"`{_shown(value)}`"


def _shown(value: Any) -> str:
    """A value as on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(_shown(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {_shown(v)}' for k, v in value.items())}}}"
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _group(folder: Path) -> str:
    name = str(folder.relative_to(ROOT / "configs"))
    lines = [f"### `{name}=`\n"]
    if name in EXTRA:
        for inner in sorted(path for path in folder.rglob("*") if path.is_dir()):
            files = sorted(file.stem for file in inner.glob("*.yaml"))
            if files:
                lines.append(f"- `{inner.relative_to(folder)}/`: {', '.join(files)}")
        return "\n".join(lines) + "\n"
    files = sorted(folder.glob("*.yaml"), key=lambda path: path.stem)
    if plain := [f"`{file.stem}`" for file in files if not _comment(file)]:
        lines.append(f"{', '.join(plain)}.\n")
    lines += ["| choice | | keys |", "|---|---|---|"] * (len(plain) < len(files))
    for file in (file for file in files if _comment(file)):
        lines.append(f"| `{file.stem}` | {_cell(_comment(file))} | {_cell(_keys(file))} |")
    return "\n".join(lines) + "\n"


def _comment(file: Path) -> str:
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def _keys(file: Path) -> str:
    content = yaml.safe_load(file.read_text()) or {}
    based = [_base(entry) for entry in content.pop("defaults", []) if entry != "_self_"]
    return ", ".join([*(f"from `{entry}`" for entry in based), *_flat(content, "")])


def _base(entry: str | dict[str, str]) -> str:
    if isinstance(entry, str):
        return entry
    group, choice = next(iter(entry.items()))
    return f"{group.partition('@')[0].removeprefix('/')}={choice}"


def _flat(node: dict[str, Any], prefix: str) -> Iterator[str]:
    """`key=value` for every leaf; not the values that models take from the data."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif not str(value).startswith("${data."):
            yield f"`{prefix}{key}={_shown(value)}`"


if __name__ == "__main__":
    PAGE.write_text(reference())
    print(f"written: {PAGE}")
