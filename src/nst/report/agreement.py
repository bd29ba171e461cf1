"""Whether runs can stand in one table: equal settings must mean the same images and the same teacher."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nst.config import UNNAMED
from nst.report.runs import read_summary

Record = dict[str, Any]


def check_agreement(folders: Iterable[Path]) -> None:
    """Compare finished runs that name the same data or the same teacher.

    Files may change under a name: a data set that was extended, a teacher that was trained again.

    Raises:
        ValueError: two of the runs have the same settings, but other images or another teacher.
    """
    found: dict[str, tuple[str, Path]] = {}
    for folder in folders:
        for kind, settings, digest in contents(read_summary(folder) or {}):
            known, first = found.setdefault(f"{kind} {settings}", (digest, folder))
            if known != digest:
                raise ValueError(
                    f"{first} and {folder} cannot stand in one table: their settings of the {kind} are the same, but its "
                    f"SHA-256 was {known[:16]}… and {digest[:16]}…; delete the outdated one to run it again"
                )


def contents(summary: Record) -> Iterator[tuple[str, str, str]]:
    """What a run names, as (kind, settings, digest of the content); a summary that lacks any of them yields less."""
    config, data, teacher = (_object(summary, key) for key in ("config", "data", "teacher"))
    images = {k: v for k, v in _object(config, "data").items() if f"data.{k}" not in UNNAMED}
    if images and "sha256" in data:
        yield "data", json.dumps(images, sort_keys=True), str(data["sha256"])
    settings = _object(config, "teacher")
    if settings and "sha256" in teacher:
        given = settings.get("weights") is not None  # else it was trained on these images
        named = {key: settings.get(key) for key in ("model", "weights", *(() if given else ("seed", "recipe")))}
        yield "teacher", json.dumps([named, None if given else images], sort_keys=True), str(teacher["sha256"])


def sources(summary: Record) -> dict[str, str]:
    """Module of the user's own code that a run used → SHA-256 of its source; none in summaries of earlier versions."""
    return {module: str(digest) for module, digest in _object(summary, "sources").items()}


def _object(record: Record, key: str) -> Record:
    node = record.get(key)
    return node if isinstance(node, dict) else {}
