"""Files: atomic writes and checksums."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAGIC = b"NST checkpoint, sha256 "  # the first line of a checkpoint begins so, before a file of `torch.save`


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, so that it has the old or the new content at any moment: temporary file, fsync, rename.

    Raises:
        OSError: disk full, read-only folder, lost mount; names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with naming(path):
        try:
            with temporary.open("xb") as f:  # "x": a new file, never through a planted link
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()  # an incomplete file would only take space on a full disk
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A block that writes to an open file: its OSError (disk full, lost mount) names `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}") from error


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest(of: Any, length: int = 8) -> str:
    """The first hex digits of the SHA-256 of nested plain values."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:length]


def flat(node: Any, prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """Nested values by their joined names."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    names = {key: f"{prefix}{separator}{key}" if prefix else key for key in node}
    return {k: v for key, value in node.items() for k, v in flat(value, names[key], separator).items()}
