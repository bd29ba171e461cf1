"""A teacher cache has the same bytes whether one process writes it, several do, or some of each in turn."""

from pathlib import Path

import numpy as np
import torch
from tests.conftest import ROOT
from tests.data.samples import write_tree
from tests.distributed.conftest import output, torchrun
from tests.distributed.writing import photographs, write
from tests.teacher.test_cache import split

from nst.dist import Dist
from nst.teacher import TeacherCache

ONE = Dist(0, 1, torch.device("cpu"))


def content(cache: TeacherCache) -> dict[str, bytes]:
    """All files of a cache, the lock aside."""
    return {file.name: file.read_bytes() for file in cache.folder.iterdir() if file.name != "lock"}


def rows(folder: Path) -> set[int]:
    return {np.count_nonzero(np.load(file)["crc"]) for file in folder.glob("*.npy*")}


def test_ranks_write_what_one_process_writes(tmp_path: Path) -> None:
    """Half a cache of one process is continued by two, half a cache of two (a signal came to one) by one."""
    write_tree(tmp_path / "tree")
    write(tmp_path / "continued", ONE, split(), after=8)
    assert rows(tmp_path / "continued") == {8 * 4}
    [job] = torchrun(str(ROOT / "tests/distributed/writing.py"), str(tmp_path), str(tmp_path / "tree"), ranks=2)
    output(job, seconds=400)
    assert rows(tmp_path / "cut") == {2 * 5 * 4}
    alone = write(tmp_path / "alone", ONE, split())
    for name in ("whole", "continued", "cut"):
        assert content(write(tmp_path / name, ONE, split(), after=int(name != "cut"))) == content(alone)
    images = photographs(tmp_path / "tree")
    decoded = write(tmp_path / "decoded", ONE, images)
    assert content(write(tmp_path / "photographs", ONE, images, after=1)) == content(decoded)
