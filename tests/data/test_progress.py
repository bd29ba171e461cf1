import sys

import pytest
import torch

from nst.data import progress
from nst.data.batch import Batch
from nst.data.progress import Progress, counted


@pytest.mark.parametrize(("rank", "silent", "lines"), [("0", -1.0, 1), ("1", -1.0, 0), ("0", 3600.0, 0)])
def test_one_line_of_the_first_rank_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, silent: float, lines: int
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(progress, "_SILENT", silent)
    with Progress("reading 50,000 images of data.root=data", 50_000) as bar:
        for _ in range(50):
            bar.update(1000)
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == "reading 50,000 images of data.root=data …\n" * lines


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, shown: bool
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(progress, "_SILENT", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("reading", 10) as bar:
        bar.update(10)
    assert ("reading" in capsys.readouterr().err) == shown


def test_batches_are_counted_as_they_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_SILENT", -1.0)
    none = torch.zeros(4)
    batches = [Batch(none, none, none, none)] * 3
    assert list(counted(batches, "evaluating the teacher", 12)) == batches
    assert capsys.readouterr().err == "evaluating the teacher …\n"
