"""A teacher cache as one file, to share it: an uncompressed tar of the manifest and the arrays."""

import io
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from nst.data.progress import Progress
from nst.files import locked, naming, write_whole
from nst.teacher.cache import MANIFEST, SPARE, TeacherCache
from nst.teacher.cost import free_space
from nst.teacher.layout import readable_bytes

NAME = re.compile(r"[^\W.][\w.+-]{0,199}")  # of an array: a plain file name
MANIFEST_BYTES = 50_000_000  # of a manifest, at most
CHUNK = 1 << 24
DTYPES = ("float16", "float32")


def pack(folder: Path, file: Path) -> TeacherCache:
    """Write a cache, checked against its checksums, into one file; unfinished views are left out.

    Raises:
        ValueError: there is no cache or it is empty or damaged, `file` exists already, or the disk is too small.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} holds no teacher cache: it has no {MANIFEST}")
    if file.exists():
        raise ValueError(f"{file} is there already; name another file, or delete it")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"{file}: there is no folder {file.absolute().parent}")
    with locked(folder / "lock", waiting=f"another process is writing {folder}; waiting for it"):
        cache = open_cache(folder)
        size = sum(cache.file(name).stat().st_size for name in cache.state)
        _check_space(file, size)
        cache.check_all()
        for state in cache.state.values():
            state["rows"] = len(state["sha256"]) * cache.images  # unfinished views have no checksum
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
        with naming(file), _removed_on_failure(temporary), Progress(f"packing {folder}", size, " bytes") as progress:
            with (
                temporary.open("xb") as target,
                tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                manifest = json.dumps(cache.manifest(), indent=1).encode()
                _add(tar, MANIFEST, len(manifest), io.BytesIO(manifest))
                for name in cache.state:
                    with cache.file(name).open("rb") as source:
                        _add(tar, f"{name}.npy", cache.file(name).stat().st_size, source)
                    progress.update(cache.file(name).stat().st_size)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(file)
    return cache


def unpack(file: Path, folder: Path) -> TeacherCache:
    """Unpack a cache, checked against its checksums, into a new folder.

    The file is not trusted: names, types and sizes of its members are checked before anything is written, and `folder` is created
    only if all checks pass.

    Raises:
        ValueError: no packed cache, a damaged, truncated or malicious one, `folder` exists already, or the disk is too small.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; name another folder, or delete it")
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    temporary = folder.absolute().with_name(f"{folder.absolute().name}.{secrets.token_hex(4)}.tmp")
    try:
        with tarfile.open(file, mode="r:") as tar:
            manifest, members = _checked_members(tar, file)
            _check_space(folder, sum(member.size for member in members))
            with naming(folder), _removed_on_failure(temporary):
                temporary.mkdir(parents=True)
                with Progress(f"unpacking {file}", len(members), " arrays") as progress:
                    for member in members:
                        _extract(tar, member, temporary)
                        progress.update(1)
                write_whole(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
                cache = open_cache(temporary)
                cache.check_all()
                temporary.rename(folder)
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(f"{file} is no packed teacher cache, or is damaged or truncated ({error})") from error
    except ValueError as error:
        raise ValueError(str(error).replace(str(temporary), str(file))) from error
    cache.folder = folder
    return cache


def open_cache(folder: Path) -> TeacherCache:
    """The cache in a folder, of any identity. Raises ValueError if there is none, or it is damaged."""
    manifest = checked_manifest((folder / MANIFEST).read_bytes(), folder / MANIFEST)
    name = next(iter(manifest["arrays"]))
    try:
        array = np.load(folder / f"{name}.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / name}.npy is damaged or missing ({error})") from error
    if array.ndim < 2 or array.dtype.name not in DTYPES:
        raise ValueError(f"{folder / name}.npy holds {array.dtype} {array.shape}, no targets of views and images")
    views, images = array.shape[:2]
    identity = {key: value for key, value in manifest["identity"].items() if key != "version"}
    cache = TeacherCache(folder, identity, images, views, array.dtype.name)
    if missing := [name for name in manifest["arrays"] if name not in cache.state]:
        raise ValueError(f"{cache.file(missing[0])} is missing")
    for name, state in cache.state.items():
        if not (0 <= state["rows"] <= cache.rows and len(state["sha256"]) == state["rows"] // images):
            raise ValueError(
                f"{folder / MANIFEST} is damaged: {name} has {state['rows']} rows, {len(state['sha256'])} checksums"
            )
    return cache


def checked_manifest(content: bytes, path: Path) -> dict[str, Any]:
    """A manifest whose fields have the right types and whose names are plain file names. Raises ValueError, naming `path`."""
    try:
        manifest = json.loads(content)
        arrays, choices = manifest["arrays"], manifest.get("choices", {})
        valid = isinstance(manifest["identity"], dict) and isinstance(manifest["teacher"], dict | None)
        valid &= all(isinstance(c["cached"], bool) and isinstance(c["why"], str) for c in choices.values())
        for name, state in arrays.items():
            valid &= NAME.fullmatch(name) is not None and isinstance(state["rows"], int)
            valid &= all(isinstance(side, int) and side > 0 for side in state["shape"])
            valid &= all(isinstance(digest, str) for digest in state["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if not valid:
        raise ValueError(f"{path} is damaged: a field is not what a manifest has there")
    if not arrays:
        raise ValueError(f"{path} names no arrays: the cache is empty")
    return manifest


def _checked_members(tar: tarfile.TarFile, file: Path) -> tuple[dict[str, Any], list[tarfile.TarInfo]]:
    """The manifest and the members of its arrays. Raises ValueError for any other member, a link, or a wrong size."""
    first = tar.next()
    if first is None or first.name != MANIFEST or not _plain(first) or first.size > MANIFEST_BYTES:
        raise ValueError(f"{file} is no packed teacher cache: it does not begin with a {MANIFEST}")
    content = tar.extractfile(first)
    assert content is not None
    manifest = checked_manifest(content.read(), file / MANIFEST)
    shapes = {f"{name}.npy": tuple(state["shape"]) for name, state in manifest["arrays"].items()}
    members: list[tarfile.TarInfo] = []
    while (member := tar.next()) is not None:
        if not _plain(member) or member.name not in shapes:
            raise ValueError(f"{file}: its member {member.name!r} is no array of the cache, so nothing is unpacked")
        _check_size(tar, member, shapes.pop(member.name), file)
        members.append(member)
    if shapes:
        raise ValueError(f"{file} is truncated or damaged: {next(iter(shapes))} is missing")
    return manifest, members


def _plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file, no link, folder, device or sparse file."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def _check_size(tar: tarfile.TarFile, member: tarfile.TarInfo, shape: tuple[int, ...], file: Path) -> None:
    """Raises ValueError unless a member is complete and as large as its array's header says."""
    source = tar.extractfile(member)
    assert source is not None
    try:
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        array_shape, fortran, dtype = readers[np.lib.format.read_magic(source)](source)
    except (ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{file}: {member.name} is damaged ({error})") from error
    if fortran or dtype.name not in DTYPES or array_shape[2:] != shape:
        raise ValueError(
            f"{file}: {member.name} holds {dtype} {array_shape}, its manifest says {shape} an image and view"
        )
    if member.size != source.tell() + prod(array_shape) * dtype.itemsize:
        raise ValueError(f"{file}: {member.name} has {member.size:,} bytes, which does not fit its shape {array_shape}")
    if member.offset_data + member.size > file.stat().st_size:
        raise ValueError(f"{file} is truncated: {member.name} is not whole")


def _add(tar: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    """A member without owner or date: equal caches, equal files."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    tar.addfile(member, content)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None
    with (folder / member.name).open("xb") as target:
        shutil.copyfileobj(source, target, CHUNK)
        target.flush()
        os.fsync(target.fileno())


def _check_space(path: Path, size: int) -> None:
    free = free_space(path)
    if size + SPARE > free:
        raise ValueError(f"{path} needs {readable_bytes(size)}, the disk has {readable_bytes(free)} free")


@contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    """An unfinished file or folder, removed if the block fails."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
