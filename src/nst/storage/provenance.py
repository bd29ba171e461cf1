"""Provenance of a result: commit, versions, hardware, the user's own code."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("nst", "torch", "torchvision", "hydra-core", "numpy")


def provenance(device: torch.device, world: int) -> dict[str, object]:
    """Commit (with `+dirty` when files differ from it), package versions and hardware."""
    return {"commit": commit(), "versions": versions(), "hardware": hardware(device, world)}


def commit() -> str | None:
    """The commit of the source tree the package runs from; None if the package is not part of a git checkout."""
    file = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # fails for a package installed inside another repository
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    result = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result


def hardware(device: torch.device, world: int) -> dict[str, object]:
    """The device by name, threads and ranks."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {"device": name, "ranks": world, "threads": torch.get_num_threads(), "cores": os.cpu_count()}


def cpu_name() -> str:
    """The processor's model name, where the system has it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
