"""A table whose groups are values of one setting, such as sizes of the training set: `along: data.limit` in its file."""

import difflib
from collections.abc import Sequence
from typing import Any

Settings = dict[str, Any]  # of a run, by dotted key


def axis_values(key: str, table: str, rows: Sequence[tuple[str, Settings]]) -> dict[str, float]:
    """The value of the setting in each group.

    Args:
        key: the setting, dotted.
        table: its name, for messages.
        rows: (group, settings of its run), one a row.

    Raises:
        ValueError: no such setting, or its values are no axis: not one number above 0 a group, not one group a number.
    """
    source = f"table={table}: along: {key}"
    values: dict[str, float] = {}
    for group, settings in rows:
        if key not in settings:
            nearest = difflib.get_close_matches(key, settings, n=2)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else "a key such as data.limit is needed"
            raise ValueError(f"{source}: runs have no such setting; {hint}")
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            text = "null" if value is None else repr(value)
            raise ValueError(
                f"{source}: it is {text} in group {group}; a number above 0 is needed, the axis is logarithmic"
            )
        if values.setdefault(group, value) != value:
            raise ValueError(
                f"{source}: it is {values[group]} and {value} in group {group}; all rows of a group need the same"
            )
    for value in values.values():
        groups = [other for other in values if values[other] == value]
        if len(groups) > 1:
            raise ValueError(
                f"{source}: it is {value} in groups {' and '.join(groups)}; each needs a value of its own, so an override "
                "cannot set it for all of them"
            )
    if len(values) < 2:
        raise ValueError(f"{source}: there is one group; an axis needs two at least")
    return values
