"""Write docs/tables/configuration.md from the schema in src/nst/config.py and the files in configs/.

python scripts/configuration.py
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

import nst.config
from nst.config import RunConfig, documented
from nst.files import flat

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
    known = [value for value in vars(nst.config).values() if getattr(value, "__module__", "") == nst.config.__name__]
    keys = [_section(schema) for schema in known if dataclasses.is_dataclass(schema)]
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
    """The keys of a schema, whose comments are its source's."""
    summary, lines = inspect.getdoc(schema) or "", []
    places = sorted(_prefixes(schema, RunConfig))
    title = " and ".join(f"`{place}`" for place in places if place)
    written = documented(schema)  # key → type and comment
    for field in dataclasses.fields(schema):
        if not dataclasses.is_dataclass(field.type):
            kind, comment = written[field.name]
            value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            default = "must be given" if value == "???" else f"`{_shown(value)}`"
            lines.append(f"| `{field.name}` | {_cell(kind)} | {default} | {_cell(comment)} |")
    title = title or ("A run" if places else re.findall("`[^`]+`", summary)[0])
    head = [f"### {title}\n", f"{summary}\n", "| key | type | default | |", "|---|---|---|---|"]
    return "\n".join([*head, *lines]) + "\n" if lines else ""


def _shown(value: Any) -> str:
    """A value as on the command line."""
    if isinstance(value, list):
        return f"[{', '.join(_shown(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {_shown(v)}' for k, v in value.items())}}}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _group(folder: Path) -> str:
    """The choices of a group, with the comment at the head of each file, and its keys."""
    name = str(folder.relative_to(ROOT / "configs"))
    lines, plain, rows = [f"### `{name}=`\n"], [], []
    for inner in sorted(path for path in folder.rglob("*") if path.is_dir()) if name in EXTRA else ():
        if files := sorted(file.stem for file in inner.glob("*.yaml")):
            lines.append(f"- `{inner.relative_to(folder)}/`: {', '.join(files)}")
    for file in sorted(folder.glob("*.yaml"), key=lambda path: path.stem) if name not in EXTRA else ():
        head = takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
        comment = " ".join(line.removeprefix("#").strip() for line in head if not line.startswith("# @package"))
        content = yaml.safe_load(file.read_text()) or {}
        keys = []
        for entry in content.pop("defaults", []):
            if isinstance(entry, dict):
                group, choice = next(iter(entry.items()))
                entry = f"{group.partition('@')[0].removeprefix('/')}={choice}"
            keys += [f"from `{entry}`"] if entry != "_self_" else []
        leaves = flat(content).items() if content else ()  # not the values that models take from the data
        keys += [f"`{key}={_shown(value)}`" for key, value in leaves if not str(value).startswith("${data.")]
        if comment:
            rows.append(f"| `{file.stem}` | {_cell(comment)} | {_cell(', '.join(keys))} |")
        else:
            plain.append(f"`{file.stem}`")
    lines += [f"{', '.join(plain)}.\n"] * bool(plain)
    return "\n".join([*lines, *(["| choice | | keys |", "|---|---|---|", *rows] if rows else [])]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference())
    print(f"written: {PAGE}")
