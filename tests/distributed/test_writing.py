"""A teacher cache has the same bytes whether one process writes it, several do, or some of each in turn."""

from pathlib import Path

import pytest
import torch
from tests.conftest import ROOT
from tests.data.samples import write_tree
from tests.distributed.conftest import output, torchrun
from tests.distributed.writing import photographs, write
from tests.teacher.test_cache import IMAGES, VIEWS, split

from nst.dist import Dist
from nst.teacher import TeacherCache
from nst.teacher import write as writing

ONE = Dist(0, 1, torch.device("cpu"))


def content(cache: TeacherCache) -> dict[str, bytes]:
    """All files of a cache, the lock aside."""
    return {file.name: file.read_bytes() for file in cache.folder.iterdir() if file.name != "lock"}


def rows(cache: TeacherCache) -> set[int]:
    return {state["rows"] for state in cache.state.values()}


def test_ranks_write_what_one_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SYNC_SECONDS", 0.0)
    write_tree(tmp_path / "tree")
    (begun,) = rows(write(tmp_path / "continued", ONE, split(), after=8))
    assert 0 < begun < VIEWS * IMAGES
    [job] = torchrun(str(ROOT / "tests/distributed/writing.py"), str(tmp_path), str(tmp_path / "tree"), ranks=2)
    output(job, seconds=400)
    alone = write(tmp_path / "alone", ONE, split())
    for name in ("whole", "continued"):
        assert content(write(tmp_path / name, ONE, split(), after=1)) == content(alone)  # complete: nothing to write
    cut = TeacherCache(
        tmp_path / "cut", {k: v for k, v in alone.identity.items() if k != "version"}, IMAGES, VIEWS, "float32"
    )
    (done,) = rows(cut)
    assert 0 < done < VIEWS * IMAGES
    assert content(write(tmp_path / "cut", ONE, split())) == content(alone)
    images = photographs(tmp_path / "tree")
    decoded = write(tmp_path / "decoded", ONE, images)
    assert content(write(tmp_path / "photographs", ONE, images, after=1)) == content(decoded)
