"""Teacher caches written by several ranks. Run by torchrun as a script: `writing.py <folder> <folder of photographs>`."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tests.data.test_folder import load
from tests.teacher.test_cache import MAP, POLY, VIEWS, arrays_for, opened, resnet8, split

from nst.data.batch import Batch
from nst.dist import Dist, join
from nst.distiller import Targets
from nst.runs.teacher_cache import StopTogether
from nst.signals import Interrupted, StopFlag
from nst.teacher import LiveTeacher, TeacherCache, write_cache
from nst.teacher import write as writing

SIZE = 8


class Stopped(LiveTeacher):
    """Gets a stop signal after some batches."""

    flag, after = StopFlag(), 10**9

    def __call__(self, batch: Batch) -> Targets:
        self.after -= 1
        if self.after == 0:
            self.flag.signum = 15
        return super().__call__(batch)


def photographs(tree: Path) -> Any:
    """The training images, decoded and cropped at random."""
    return load(tree, size=SIZE, resize=SIZE + 2).train


def write(folder: Path, here: Dist, images: Any, after: int = 10**9, workers: int = 0) -> TeacherCache:
    """Write a cache of `images`, or as much of it as comes before a stop signal after some batches."""
    torch.manual_seed(0)
    cache = opened(folder) if len(images) == 21 else TeacherCache(folder, {}, len(images), VIEWS, "float32")
    live = Stopped(resnet8(), [POLY, MAP])
    live.flag, live.after = StopFlag(), after
    loader = images.loader(4, train=True, workers=workers)
    peers = StopTogether(live.flag, here)
    with suppress(Interrupted):
        write_cache(cache, live, loader, images.view_subset(VIEWS), arrays_for(POLY, MAP), peers=peers)
    return cache


if __name__ == "__main__":
    folder, tree = map(Path, sys.argv[1:])
    writing.SYNC_SECONDS, writing.ASK_ROUNDS = 0.0, 2
    with join("cpu") as here:
        write(folder / "whole", here, split())
        write(folder / "cut", here, split(), after=5 if here.rank else 10**9)
        write(folder / "continued", here, split())
        write(folder / "photographs", here, photographs(tree), workers=1)
