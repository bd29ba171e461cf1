"""Provenance of a result: commit, versions, hardware, the user's own code."""

import inspect
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from nst.files import sha256_of

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


def user_sources(*networks: nn.Module | None) -> dict[str, str]:
    """SHA-256 of each source file of the user that defines a layer or loss, by module name; installed packages are left out."""
    installed = [Path(path).resolve() for name, path in sysconfig.get_paths().items() if name.endswith("lib")]
    installed.append(Path(__file__).resolve().parents[1])
    digests: dict[str, str] = {}
    for module_class in {type(module) for network in networks if network is not None for module in network.modules()}:
        with suppress(TypeError, OSError):  # defined interactively, or compiled
            file = Path(inspect.getsourcefile(module_class) or "").resolve()
            if file.is_file() and not any(file.is_relative_to(folder) for folder in installed):
                digests[module_class.__module__] = sha256_of(file)
    return dict(sorted(digests.items()))


def changed_sources(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The files of modules that both results of `user_sources` have, with another content."""
    return [str(sys.modules[module].__file__) for module, digest in before.items() if now.get(module, digest) != digest]
