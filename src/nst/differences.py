"""How two nested settings differ, told field by field."""

from typing import Any


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """One line for each field: `key: old value there, new value now`; a missing key counts as None."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if old == new else [f"{prefix}: {old!r} there, {new!r} now"]
