"""Checkpoints: what was saved comes back, the last few stay, nothing damaged is used and nothing lost is passed over."""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from nst.storage.checkpoint import MAGIC, Checkpoints, read_checkpoint


def found(checkpoints: Checkpoints) -> int:
    latest = checkpoints.latest()
    assert latest is not None
    assert torch.equal(latest[1]["weights"], torch.full((100,), float(latest[1]["step"])))
    return latest[1]["step"]


def test_the_newest_whole_one_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every flipped bit and every truncation is noticed; where none is left, training does not start over."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step, "weights": torch.full((100,), float(step)), "last": None})
    (checkpoints.folder / "step-00000004.ckpt.tmp").write_bytes(b"half written")
    assert found(checkpoints) == found(Checkpoints(tmp_path)) == 3
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000002.ckpt", "step-00000003.ckpt"]
    path = checkpoints.paths()[-1]
    whole = path.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in range(0, len(whole), 17)]
    for content in [*flipped, *(whole[:size] for size in (0, 1, 23, 87, 88, 100, len(whole) - 1))]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            read_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert found(checkpoints) == 2
    assert "step-00000003.ckpt.damaged" in caplog.text
    checkpoints.paths()[-1].write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"step-00000003\.ckpt"):
            checkpoints.latest()


@pytest.mark.parametrize("content", [[1], {"x": Path()}, b"no"])
def test_a_right_checksum_alone_makes_no_checkpoint(tmp_path: Path, content: Any) -> None:
    """It holds a list, an object that would run code, no file of torch's."""
    buffer, path = io.BytesIO(), tmp_path / "a.ckpt"
    torch.save(content, buffer)
    body = content if isinstance(content, bytes) else buffer.getvalue()
    path.write_bytes(MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged"):
        read_checkpoint(path)
