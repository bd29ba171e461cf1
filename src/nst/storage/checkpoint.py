"""Checkpoints: atomic writes, verified when read, the last few kept."""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from nst.files import MAGIC, write_whole

log = logging.getLogger(__name__)


class Checkpoints:
    """The newest `keep` checkpoints of one run, in `<run folder>/checkpoints`, named by step."""

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.folder, self.keep = run / "checkpoints", keep
        self.marker = run / "newest-checkpoint"  # beside the folder, so that a lost folder is noticed

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.ckpt"))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state of a run after `step` steps; older ones beyond `keep` are removed afterwards.

        Raises:
            OSError: disk full, read-only folder, lost mount; earlier checkpoints are untouched.
        """
        buffer, path = io.BytesIO(), self.folder / f"step-{step:08d}.ckpt"
        torch.save(state, buffer)
        content = buffer.getvalue()
        try:
            write_whole(path, MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            write_whole(self.marker, path.name.encode() + b"\n")
            for old in self.paths()[: -self.keep]:
                old.unlink()
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror or error}; {self.last_good()}") from error

    def last_good(self) -> str:
        """For messages: the checkpoint that the run can continue from."""
        paths = self.paths()
        return f"the last good checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest intact checkpoint; damaged ones are reported and renamed to `*.damaged`.

        Only the writing process may call this: it removes the files of an interrupted write.

        Raises:
            ValueError: there were checkpoints and none is intact; training never silently restarts.
        """
        for unfinished in self.folder.glob("*.tmp"):
            unfinished.unlink()
        newest = self.marker.read_text(errors="replace").strip() if self.marker.is_file() else ""
        paths = self.paths()
        if paths and paths[-1].name < newest:
            log.warning("checkpoint %s is missing from %s; the one before it is used", newest, self.folder)
        for path in reversed(paths):
            try:
                return path, read_checkpoint(path)
            except ValueError as error:
                log.warning("%s; it is kept as %s.damaged and the one before it is used", error, path.name)
                path.replace(path.with_name(path.name + ".damaged"))
        if newest or paths:
            name = newest or paths[-1].name
            raise ValueError(
                f"{self.folder} has no usable checkpoint, but {name} was written there: restore it, or delete the run"
            )
        return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint; tensors and plain values only, no code is run.

    Raises:
        ValueError: if it is truncated, its SHA-256 does not match, or it would run code.
    """
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if head != MAGIC + hashlib.sha256(body).hexdigest().encode():
            raise ValueError("its content has another SHA-256 than its first line says")
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
    except Exception as error:  # whatever reading and unpickling of any bytes raise
        raise ValueError(f"checkpoint {path} is damaged: {error}") from error
    return state
