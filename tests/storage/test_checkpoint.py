"""Checkpoints: what was saved comes back, the last few stay, nothing damaged is used and nothing lost is passed over."""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.test_weights import WithState
from torch import nn

from nst.storage.checkpoint import MAGIC, Checkpoints, check_resumable, read_checkpoint


def state(step: int) -> dict[str, Any]:
    return {"progress": {"step": step}, "weights": torch.full((100,), float(step)), "last": None}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """Of a run that has saved after steps 1, 2 and 3 and keeps two."""
    made = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        made.save(step, state(step))
    return made


def found(checkpoints: Checkpoints) -> int:
    latest = checkpoints.latest()
    assert latest is not None
    assert torch.equal(latest[1]["weights"], state(latest[1]["progress"]["step"])["weights"])
    return latest[1]["progress"]["step"]


def test_the_newest_comes_back_and_the_last_ones_stay(checkpoints: Checkpoints, tmp_path: Path) -> None:
    (checkpoints.folder / "step-00000004.ckpt.tmp").write_bytes(b"half written")
    assert found(checkpoints) == found(Checkpoints(tmp_path)) == 3
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000002.ckpt", "step-00000003.ckpt"]
    assert Checkpoints(tmp_path / "new").latest() is None


def test_every_flipped_bit_and_every_truncation_is_noticed(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before is used; where none is left, training does not start over."""
    path = checkpoints.paths()[-1]
    whole = path.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in range(0, len(whole), 17)]
    for content in [*flipped, *(whole[:size] for size in (0, 1, 23, 87, 88, 100, len(whole) - 1))]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            read_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert found(checkpoints) == 2
    assert "step-00000003.ckpt.damaged and the one before it is used" in caplog.text
    checkpoints.paths()[-1].write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"step-00000003\.ckpt was written there; restore it"):
            checkpoints.latest()


def test_a_failed_save_names_the_last_good_one(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as m:
        m.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match=r"step-00000004.*Input/output error; the last good checkpoint is .*00000003"):
            checkpoints.save(4, state(4))
    assert found(checkpoints) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [([1], "it holds a list"), ({"x": Path()}, r"(?s)is damaged: .*PosixPath"), (b"no", "damaged")],
)
def test_a_right_checksum_alone_makes_no_checkpoint(tmp_path: Path, content: Any, message: str) -> None:
    buffer = io.BytesIO(content if isinstance(content, bytes) else b"")
    if not isinstance(content, bytes):
        torch.save(content, buffer)
    body, path = buffer.getvalue(), tmp_path / "a.ckpt"
    path.write_bytes(MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


def test_state_that_cannot_come_back_is_refused() -> None:
    check_resumable(WithState({"count": 3, "mean": torch.zeros(2), "names": ["a"]}))
    for own in (Path("x"), nn.Linear(1, 1), lambda: 0):
        with pytest.raises(ValueError, match=r"no checkpoint can hold the state _extra_state: "):
            check_resumable(WithState(own))
