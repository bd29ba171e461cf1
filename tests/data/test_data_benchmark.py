import argparse
import sys
from pathlib import Path

import pytest
from tests.data.samples import write_tree

from benchmarks import data


def test_both_kinds_of_images_at_their_smallest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "256", "16", "0.01", "True"])
    exec(data.IN_MEMORY, {})
    assert float(capsys.readouterr().out) > 0
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    write_tree(tmp_path)
    words = [f"--photographs={tmp_path}", "--size=16", "--images=0", "--workers=0", "--repeats=1"]
    data.run(parser.parse_args(words))
    assert "ours" in capsys.readouterr().out
