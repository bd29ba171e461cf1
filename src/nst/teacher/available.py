"""Host memory that this process may still allocate: limited by the machine's free memory and by its control groups."""

from collections.abc import Iterator
from pathlib import Path

import psutil

MOUNT, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_memory() -> int:
    """Bytes of host memory that can be allocated without swapping, or being killed in a container or batch job."""
    return min([psutil.virtual_memory().available, *cgroup_available()])


def cgroup_available(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> Iterator[int]:
    """Bytes left under each memory limit that holds for this process, of both versions of Linux's control groups.

    Linux counts its file cache as used, but frees it first: the inactive part is subtracted.
    """
    for line in membership.read_text().splitlines() if membership.is_file() else []:
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
        ):  # a container may see its own group at the top, without a name or with another one
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
        return next((int(fields[1]) for fields in lines if fields[0] == name), 0)
    except (OSError, ValueError, IndexError):
        return 0
