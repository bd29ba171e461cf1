"""Teacher caches written by several ranks. Run by torchrun as a script: `writing.py <folder> <folder of photographs>`."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tests.data.samples import load
from tests.teacher.test_cache import KEY, MAP, POLY, VIEWS, arrays_for, resnet8, split

from nst.data.batch import Batch
from nst.dist import Dist, join
from nst.distiller import Targets
from nst.signals import Interrupted
from nst.teacher import LiveTeacher, TeacherCache, write_cache

SIZE = 8


class Stopped(LiveTeacher):
    """Gets a stop signal in one of its batches."""

    after = 0

    def __call__(self, batch: Batch) -> Targets:
        self.after -= 1
        if self.after == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(batch)


def photographs(tree: Path) -> Any:
    """The training images, decoded and cropped at random."""
    return load(tree, size=SIZE, resize=SIZE + 2).train


def write(folder: Path, here: Dist, images: Any, after: int = 0, workers: int = 0) -> TeacherCache:
    """Write a cache of `images`, or as much of it as comes before a stop signal in a batch of this number."""
    torch.manual_seed(0)
    cache = TeacherCache(folder, KEY, len(images), VIEWS, "float32")
    live = Stopped(resnet8(), [POLY, MAP])
    live.after = after
    loader = images.loader(4, train=True, workers=workers)
    with suppress(Interrupted):
        write_cache(cache, live, loader, images.view_subset(VIEWS), arrays_for(POLY, MAP), here)
    return cache


if __name__ == "__main__":
    folder, tree = map(Path, sys.argv[1:])
    with join("cpu") as here:
        write(folder / "whole", here, split())
        write(folder / "cut", here, split(), after=5 if here.rank else 0)
        write(folder / "continued", here, split())
        write(folder / "photographs", here, photographs(tree), workers=1)
