"""Memory limits of control groups, as Linux writes them, count as the machine's own memory does."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nst.teacher import available, cached
from nst.teacher.available import available_memory, cgroup_available


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def found(mount: Path, own: str) -> list[int]:
    (mount / "own").write_text(own)
    return list(cgroup_available(mount, mount / "own"))


def test_version_2(tmp_path: Path) -> None:
    write(tmp_path / "job" / "step", memory__max="max", memory__current=5)
    write(tmp_path / "job", memory__max=1000, memory__current=700, memory__stat="anon 1\ninactive_file 50\n")
    assert found(tmp_path, "0::/job/step\n") == [350]
    write(tmp_path, memory__max=300, memory__current=299)  # a container sees its own group at the top
    assert found(tmp_path, "0::/\n") == [1]
    assert found(tmp_path, "0::/job/step\n") == [350, 1]


def test_version_1(tmp_path: Path) -> None:
    files = {"memory__limit_in_bytes": 1000, "memory__usage_in_bytes": 900, "memory__stat": "total_inactive_file 20"}
    write(tmp_path / "memory" / "docker" / "a:b", **files)
    assert found(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/docker/a:b\n0::/\n") == [120]
    assert found(tmp_path, "4:memory:/elsewhere\n") == []
    write(tmp_path / "memory", **{**files, "memory__usage_in_bytes": 2000})
    assert found(tmp_path, "4:memory:/elsewhere\n") == [0]


def test_without_control_groups(tmp_path: Path) -> None:
    assert list(cgroup_available(tmp_path, tmp_path / "none")) == []
    assert available_memory() > 0


def test_a_cache_larger_than_half_of_what_a_container_has_stays_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "cgroup_available", lambda: [800_000_000])
    monkeypatch.setattr(available.psutil, "virtual_memory", lambda: SimpleNamespace(available=64_000_000_000))
    assert cached.choose_residence(598_000_000, torch.device("cpu"), 1) == "disk"
    assert cached.choose_residence(150_000_000, torch.device("cpu"), 2) == "host"
