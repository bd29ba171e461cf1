"""Titles of a table and its groups: from its file, or with overrides from the actual settings."""

from collections.abc import Sequence

from nst.config import RunConfig
from nst.reproduce.table import Group, Table

Pairs = Sequence[tuple[RunConfig, RunConfig]]  # (settings of the table's file, actual settings), one per row


def group_title(group: Group, rows: Pairs) -> str:
    """The group's own title, or the actual teacher → student."""
    if all(networks(original) == networks(actual) for original, actual in rows):
        return group.title
    taught = [names for names in (networks(actual) for _, actual in rows) if names[0] is not None]
    titles = dict.fromkeys(f"{teacher} → {student}" for teacher, student in taught)
    return ", ".join(titles) or ", ".join(dict.fromkeys(actual.model["name"] for _, actual in rows))


def table_title(table: Table, rows: Pairs) -> str:
    """The table's own title, or the actual data and length."""
    if all(extent(original) == extent(actual) for original, actual in rows):
        return table.title
    extents = [extent(actual) for _, actual in rows]
    names = ", ".join(dict.fromkeys(name for name, _, _ in extents))
    images = [f"{limit:,} training images" for limit in {limit for _, limit, _ in extents} if limit]
    lengths = {epochs for _, _, epochs in extents}
    length = [f"{epochs} epoch{'s' * (epochs != 1)}" for epochs in lengths] if len(lengths) == 1 else []
    return ", ".join([names, *(images if len(images) == 1 else []), *length, f"test {table.metric}"])


def networks(run: RunConfig) -> tuple[str | None, str]:
    """The names of teacher and student."""
    return (run.teacher.model or {}).get("name"), run.model["name"]


def extent(run: RunConfig) -> tuple[str, int | None, int]:
    """Data set, limit of training images, epochs."""
    return run.data["name"], run.data.get("limit"), run.trainer.epochs
