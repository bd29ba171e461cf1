"""Logs: cut to what the checkpoint knew, each step once."""

import logging
from pathlib import Path

import pytest
from scripts.outcome import board, rows

from nst.runs.trackers import Tracker


def tracker(folder: Path, sizes: dict[str, int] | None) -> Tracker:
    return Tracker(folder, sizes, steps=10, first_step=0, show=False)


def test_each_step_once_in_both(tmp_path: Path) -> None:
    with tracker(tmp_path, None) as first:
        first.log("train", 1, {"loss": 0.5, "terms": {"kd": 0.25}})
        sizes = first.sizes()
        first.log("train", 2, {"loss": 99.0})
    with tracker(tmp_path, sizes) as second:
        second.log("train", 2, {"loss": 0.375})
    assert rows(tmp_path) == [
        {"kind": "train", "step": 1, "loss": 0.5, "terms": {"kd": 0.25}},
        {"kind": "train", "step": 2, "loss": 0.375},
    ]
    assert board(tmp_path) == [("train/loss", 1, 0.5), ("train/loss", 2, 0.375), ("train/terms/kd", 1, 0.25)]


def test_a_new_start_begins_with_empty_logs(tmp_path: Path) -> None:
    with tracker(tmp_path, None) as first:
        first.log("train", 1, {"loss": 0.5})
    with tracker(tmp_path, None):
        pass
    assert rows(tmp_path) == []
    assert board(tmp_path) == []


def test_lost_rows_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tracker(tmp_path, None) as first:
        first.log("train", 1, {"loss": 0.5})
        sizes = first.sizes()
    (tmp_path / "metrics.jsonl").unlink()
    with caplog.at_level(logging.WARNING), tracker(tmp_path, sizes):
        pass
    assert "metrics.jsonl has 0 bytes" in caplog.text


def test_closing_does_not_hide_an_earlier_error(tmp_path: Path) -> None:
    made = tracker(tmp_path, None)

    def full() -> None:
        raise OSError("disk full")

    def fail() -> None:
        with made:
            close, made._board.close = made._board.close, full
            close()
            raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        fail()
