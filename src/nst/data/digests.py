"""SHA-256 of many files. A file is read once: its digest is kept in the user's cache."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nst.data.cache import cache_file, write_cache
from nst.data.progress import Progress

_KEY, _DIGEST = 16, 32  # bytes
_WORTH_KEEPING = 32 * 2**20  # bytes read; less is as fast to read again
_BATCH = 64  # files of one task of a thread
_LOT = 256 * _BATCH  # files that are queued at a time
_SAVE_EVERY = 50_000  # files hashed between two saves of the cache


def file_digests(folder: Path, names: Sequence[str]) -> list[bytes]:
    """SHA-256 (32 bytes) of each file `folder/name`.

    A digest is cached under the file's path, size, and times of modification and change in nanoseconds; a file that matches
    all of them is not read again. A damaged cache is ignored.

    Raises:
        ValueError: a file cannot be read; the message names it.
    """
    path = str(folder.resolve())
    name = f"digests-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    digests: list[bytes] = []
    with cache_file(name) as file, Progress(f"hashing {len(names):,} images of {folder}", len(names)) as progress:
        cached = _load(file) if file else {}
        new_files = new_bytes = 0
        for batch in _in_threads(path, names, cached):
            for key, digest, size in batch:
                digests.append(digest)
                if size is not None:
                    cached[key] = digest
                    new_files, new_bytes = new_files + 1, new_bytes + size
            progress.update(len(batch))
            if file and new_files >= _SAVE_EVERY:
                _save(file, cached)
                new_files = new_bytes = 0
        if file and (new_bytes >= _WORTH_KEEPING or (new_files and file.is_file())):
            _save(file, cached)
    return digests


Found = tuple[bytes, bytes, int | None]
"""A file's key and digest, and the bytes that were read for it; None if it was cached."""


def _in_threads(folder: str, names: Sequence[str], cached: dict[bytes, bytes]) -> Iterator[list[Found]]:
    """The digests of each batch of names, in order. Reading waits for the disk, so more threads than cores are faster."""

    def find(batch: Sequence[str]) -> list[Found]:
        return [_find(folder, name, cached) for name in batch]

    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        for start in range(0, len(names), _LOT):
            lot = names[start : start + _LOT]
            yield from pool.map(find, (lot[i : i + _BATCH] for i in range(0, len(lot), _BATCH)))


def _find(folder: str, name: str, cached: dict[bytes, bytes]) -> Found:
    path = f"{folder}/{name}"
    try:
        info = os.stat(path)  # noqa: PTH116 (a Path for each of a million files is slow)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{path}: not a file")
        text = f"{path}\0{info.st_size}\0{info.st_mtime_ns}\0{info.st_ctime_ns}"
        key = hashlib.blake2b(os.fsencode(text), digest_size=_KEY).digest()
        if key in cached:
            return key, cached[key], None
        with open(path, "rb") as file:  # noqa: PTH123
            return key, hashlib.file_digest(file, "sha256").digest(), info.st_size
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def _load(file: Path) -> dict[bytes, bytes]:
    try:
        content = file.read_bytes()
    except OSError:
        return {}
    checksum, body = content[:_DIGEST], memoryview(content)[_DIGEST:]
    if hashlib.sha256(body).digest() != checksum or len(body) % (_KEY + _DIGEST):
        return {}
    starts = range(0, len(body), _KEY + _DIGEST)
    return {bytes(body[i : i + _KEY]): bytes(body[i + _KEY : i + _KEY + _DIGEST]) for i in starts}


def _save(file: Path, digests: dict[bytes, bytes]) -> None:
    body = b"".join(key + digest for key, digest in digests.items())
    write_cache(file, hashlib.sha256(body).digest() + body)
