"""A table whose groups are values of one setting, such as sizes of the training set: `along: data.limit` in its file."""

import difflib
from collections.abc import Sequence
from typing import Any

Settings = dict[str, Any]  # of a run, by dotted key


def values_along(key: str, table: str, rows: Sequence[tuple[str, Settings]]) -> dict[str, float]:
    """The value of the setting in each group.

    Args:
        key: the setting, dotted.
        table: its name, for messages.
        rows: (group, settings of its run), one a row.

    Raises:
        ValueError: no such setting, or its values are no axis: not one number above 0 a group, not one group a number.
    """
    where = f"table={table}: along: {key}"
    found: dict[str, float] = {}
    for group, settings in rows:
        if key not in settings:
            near = difflib.get_close_matches(key, settings, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else "a key such as data.limit is needed"
            raise ValueError(f"{where}: runs have no such setting; {hint}")
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            shown = "null" if value is None else repr(value)
            raise ValueError(
                f"{where}: it is {shown} in group {group}; a number above 0 is needed, the axis is logarithmic"
            )
        if found.setdefault(group, value) != value:
            raise ValueError(
                f"{where}: it is {found[group]} and {value} in group {group}; all rows of a group need the same"
            )
    for value in found.values():
        same = [other for other in found if found[other] == value]
        if len(same) > 1:
            raise ValueError(
                f"{where}: it is {value} in groups {' and '.join(same)}; each needs a value of its own, so an override "
                "cannot set it for all of them"
            )
    if len(found) < 2:
        raise ValueError(f"{where}: there is one group; an axis needs two at least")
    return found
