"""How much host memory this process may still take: what the machine has free, and what its control group lets it have."""

from collections.abc import Iterator
from pathlib import Path

import psutil

MOUNT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_memory() -> int:
    """Bytes of host memory that can be had without swapping, and without being killed for it in a container or a batch job."""
    return min([psutil.virtual_memory().available, *cgroup_available()])


def cgroup_available(mount: Path = MOUNT, own: Path = OWN) -> Iterator[int]:
    """Bytes left under each memory limit that holds for this process, of both versions of Linux's control groups.

    The cache of files counts as used there, but goes first: what was not read lately is taken off.
    """
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.strip("/")
        for folder in (
            group,
            *group.parents,
        ):  # a container may see its own group at the top, under no name or another one
            limit, used = (_number(folder / name) for name in names[:2])
            if limit is not None and used is not None:
                yield max(0, limit - used + _stat(folder / "memory.stat", names[2]))
            if folder == top:
                break


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none ("max")."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _stat(file: Path, name: str) -> int:
    try:
        lines = (line.split() for line in file.read_text().splitlines())
        return next((int(words[1]) for words in lines if words[0] == name), 0)
    except (OSError, ValueError, IndexError):
        return 0
