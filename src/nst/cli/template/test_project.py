"""The project runs from end to end, in a second or two."""

from pathlib import Path

import pytest

import nst


def test_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    run = nst.train(
        "experiment=first", "trainer=quick", "teacher.train.epochs=1", "teacher.min_accuracy=0", f"outputs={tmp_path}"
    )
    assert run.summary["student"]["name"] == "small"
