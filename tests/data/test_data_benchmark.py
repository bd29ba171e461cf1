import argparse
from pathlib import Path

import pytest
from tests.data.samples import write_tree

from benchmarks import data


def test_both_kinds_of_images_at_their_smallest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    write_tree(tmp_path)
    words = [f"--photographs={tmp_path}", "--size=16", "--images=256", "--workers=0", "--repeats=1"]
    data.run(parser.parse_args(words))
    said = capsys.readouterr().out
    assert "channels_last" in said
    assert "ours" in said
