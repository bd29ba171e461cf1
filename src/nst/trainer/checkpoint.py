"""Checkpoints: written whole, verified when read, the last few kept."""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from nst.weights import write_whole

log = logging.getLogger(__name__)

MAGIC = b"NST checkpoint, sha256 "


class Checkpoints:
    """The checkpoints of one run folder, named by step."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """`keep`: how many of the newest stay."""
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.ckpt"))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state of a run after `step` steps; older ones beyond `keep` are removed afterwards.

        Raises:
            OSError: disk full, read-only folder; earlier checkpoints are untouched.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"step-{step:08d}.ckpt"
        write_whole(path, MAGIC + digest.encode() + b"\n" + content)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is intact; damaged ones are reported and kept aside as `*.damaged`.

        Raises:
            ValueError: if there are checkpoints and every one is damaged: starting over silently would lose the run.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                return path, read_checkpoint(path)
            except ValueError as error:
                log.warning("%s; using the one before it", error)
                path.replace(path.with_suffix(".damaged"))
        if paths:
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged (kept there as *.damaged); delete the folder to start over"
            )
        return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint; tensors and plain values only, no code is run.

    Raises:
        ValueError: if it is truncated or its SHA-256 does not match.
    """
    content = path.read_bytes()
    head, _, body = content.partition(b"\n")
    found = hashlib.sha256(body).hexdigest()
    if not head.startswith(MAGIC) or head[len(MAGIC) :].decode(errors="replace") != found:
        raise ValueError(f"checkpoint {path} is damaged: its content has SHA-256 {found}, not the one it names")
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
