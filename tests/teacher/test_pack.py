"""A cache travels as one file; a file that is damaged, truncated or hostile leaves nothing behind."""

import io
import json
import tarfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.teacher.test_cache import IDENTITY, IMAGES, MAP, POLY, SOFT, VIEWS, opened, written_cache

from nst.cli import cache as command
from nst.teacher import cost as costs
from nst.teacher.pack import pack, unpack

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    written_cache(tmp_path / "cache", SOFT, MAP)
    pack(tmp_path / "cache", tmp_path / "packed.tar")
    return tmp_path / "packed.tar"


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "lock"}


def test_unpacking_restores_the_cache(packed: Path, tmp_path: Path) -> None:
    found = unpack(packed, tmp_path / "there" / "deep")
    assert content(tmp_path / "there" / "deep") == content(tmp_path / "cache")
    assert (found.images, found.views, found.dtype.name) == (IMAGES, VIEWS, "float32")
    assert {k: v for k, v in found.identity.items() if k != "version"} == IDENTITY
    pack(tmp_path / "there" / "deep", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == packed.read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


def test_of_a_partial_cache_the_finished_views_are_packed(tmp_path: Path) -> None:
    cache = written_cache(tmp_path / "cache", SOFT)
    (state,) = cache.state.values()
    state["rows"], state["sha256"] = 2 * IMAGES + 5, state["sha256"][:2]
    cache.save({})
    pack(tmp_path / "cache", tmp_path / "packed.tar")
    unpack(tmp_path / "packed.tar", tmp_path / "there")
    assert [s["rows"] for s in opened(tmp_path / "there").state.values()] == [2 * IMAGES]
    whole = written_cache(tmp_path / "whole", SOFT)
    assert content(written_cache(tmp_path / "there", SOFT).folder) == content(whole.folder)


def rewritten(packed: Path, change: Callable[[Members], Any]) -> None:
    """The file with other members."""
    with tarfile.open(packed) as tar:
        members = [(member, file.read() if (file := tar.extractfile(member)) else b"") for member in tar]
    change(members)
    with tarfile.open(packed, "w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def named(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def in_manifest(**changed: Any) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        manifest = json.loads(members[0][1])
        members[0] = members[0][0], json.dumps(manifest | changed).encode()

    return change


def longer(members: Members) -> None:
    members[1] = members[1][0], members[1][1] + b"more"


def flipped(members: Members) -> None:
    members[-1] = members[-1][0], members[-1][1][:-1] + b"\x7f"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.append(named("../outside.npy")), r"'\.\./outside\.npy' is no array of the cache"),
        (lambda m: m.append(named("/tmp/outside.npy")), "is no array of the cache"),
        (lambda m: m.insert(1, named(m[1][0].name, tarfile.SYMTYPE, "/etc/passwd")), "is no array of the cache"),
        (lambda m: m.insert(1, named(m[1][0].name, tarfile.LNKTYPE, "manifest.json")), "is no array of the cache"),
        (lambda m: m.append(m[1]), "is no array of the cache"),
        (lambda m: m.pop(), "is missing"),
        (lambda m: m.pop(0), "does not begin with a manifest.json"),
        (longer, "which does not fit its shape"),
        (flipped, "has another SHA-256 than manifest.json says"),
        (in_manifest(arrays={"../x": {"shape": [3], "rows": 0, "sha256": []}}), "is damaged"),
        (in_manifest(arrays={}), "the cache is empty"),
        (in_manifest(arrays=[1]), "is damaged"),
        (in_manifest(choices={"x": 1}), "is damaged"),
        (in_manifest(identity={"version": 99}), "version"),
    ],
)
def test_what_is_wrong_is_refused_and_leaves_nothing(
    packed: Path, tmp_path: Path, change: Callable[[Members], Any], message: str
) -> None:
    rewritten(packed, change)
    with pytest.raises(ValueError, match=message) as raised:
        unpack(packed, tmp_path / "there")
    assert ".tmp" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "packed.tar"]


@pytest.mark.parametrize("kept", [0, 100, 700, 2500, -12_000])
def test_a_truncated_file_is_refused(packed: Path, tmp_path: Path, kept: int) -> None:
    packed.write_bytes(packed.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"packed\.tar"):
        unpack(packed, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_nothing_is_overwritten_and_free_space_is_checked_first(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="cache is there already; name another folder"):
        unpack(packed, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"packed\.tar is there already; name another file"):
        pack(tmp_path / "cache", packed)
    with pytest.raises(ValueError, match="holds no teacher cache"):
        pack(tmp_path, tmp_path / "other.tar")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda path: usage(10**9, 10**9, costs.SPARE))
    for work in (lambda: pack(tmp_path / "cache", tmp_path / "o.tar"), lambda: unpack(packed, tmp_path / "there")):
        with pytest.raises(ValueError, match=r"kB, the disk has 100\.0 MB free"):
            work()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "packed.tar"]


def test_a_damaged_cache_is_not_packed(tmp_path: Path) -> None:
    cache = written_cache(tmp_path / "cache", POLY)
    (name,) = cache.state
    damaged = bytearray(cache.file(name).read_bytes())
    damaged[-1] ^= 1
    cache.file(name).write_bytes(damaged)
    with pytest.raises(ValueError, match="has another SHA-256"):
        pack(tmp_path / "cache", tmp_path / "packed.tar")
    assert not (tmp_path / "packed.tar").exists()


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written_cache(tmp_path / "cache", SOFT)
    command.main(["pack", f"cache={tmp_path}/cache", f"to={tmp_path}/packed.tar"])
    command.main(["unpack", f"file={tmp_path}/packed.tar", f"to={tmp_path}/there"])
    packed, unpacked = capsys.readouterr().out.splitlines()
    assert packed.startswith(f"{tmp_path}/packed.tar: 1 arrays, 4 of 4 views of 21 images; ")
    assert unpacked.endswith(f"use it with cache.views=16 cache.path={tmp_path}/there")
    for words, message in (
        (["pack", "cach=x"], "'cach=x': no such key; did you mean cache=…"),
        (["unpack", "file=x"], "to"),
        (["unpack", f"file={tmp_path}/none.tar", f"to={tmp_path}/x"], "none.tar: no such file"),
    ):
        with pytest.raises(SystemExit):
            command.main(words)
        assert message in capsys.readouterr().err
