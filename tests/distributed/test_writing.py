"""A teacher cache has the same bytes whether one process writes it, several do, or some of each in turn."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.data.samples import load, write_tree
from tests.faults.conftest import on_ranks
from tests.teacher.test_cache import KEY, MAP, POLY, VIEWS, arrays_for, resnet8, split

from nst.data.batch import Batch
from nst.dist import Dist, join
from nst.distiller import Targets
from nst.signals import Interrupted
from nst.teacher import LiveTeacher, TeacherCache, write_cache

ONE = Dist(0, 1, torch.device("cpu"))


class Stopped(LiveTeacher):
    """Gets a stop signal in one of its batches."""

    after = 0

    def __call__(self, batch: Batch) -> Targets:
        self.after -= 1
        if self.after == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(batch)


def write(folder: Path, here: Dist, images: Any, after: int = 0) -> TeacherCache:
    """Write a cache of `images`, or as much of it as comes before a stop signal in a batch of this number."""
    torch.manual_seed(0)
    cache = TeacherCache(folder, KEY, len(images), VIEWS, "float32")
    live, loader = Stopped(resnet8(), [POLY, MAP]), images.loader(4, train=True)
    live.after = after
    with suppress(Interrupted):
        write_cache(cache, live, loader, images.view_subset(VIEWS), arrays_for(POLY, MAP), here)
    return cache


def content(cache: TeacherCache) -> dict[str, bytes]:
    """All files of a cache, the lock aside."""
    return {file.name: file.read_bytes() for file in cache.folder.iterdir() if file.name != "lock"}


def rows(folder: Path) -> set[int]:
    return {np.count_nonzero(np.load(file)["crc"]) for file in folder.glob("*.npy*")}


def write_all(folder: Path) -> None:
    """As a rank."""
    with join("cpu") as here:
        write(folder / "whole", here, split())
        write(folder / "cut", here, split(), after=5 if here.rank else 0)
        write(folder / "continued", here, split())
        write(folder / "photographs", here, load(folder / "tree", size=8, resize=10).train)


def test_ranks_write_what_one_process_writes(tmp_path: Path) -> None:
    """Half a cache of one process is continued by two, half a cache of two (a signal came to one) by one."""
    write_tree(tmp_path / "tree")
    write(tmp_path / "continued", ONE, split(), after=8)
    assert rows(tmp_path / "continued") == {8 * 4}
    assert on_ranks(write_all, tmp_path) == [0, 0]
    assert rows(tmp_path / "cut") == {2 * 5 * 4}
    alone = write(tmp_path / "alone", ONE, split())
    for name in ("whole", "continued", "cut"):
        assert content(write(tmp_path / name, ONE, split(), after=int(name != "cut"))) == content(alone)
    images = load(tmp_path / "tree", size=8, resize=10).train
    decoded = write(tmp_path / "decoded", ONE, images)
    assert content(write(tmp_path / "photographs", ONE, images, after=1)) == content(decoded)
