"""Cached targets of photographs: some random crops of each image, fixed by (index, slot)."""

from pathlib import Path

import torch
from tests.conftest import Compose
from tests.data.samples import write_tree

from nst import build
from nst.dist import Dist
from nst.run import prepare_teacher

ONE = Dist(0, 1, torch.device("cpu"))


def test_cached_targets_are_those_of_the_same_crop(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    write_tree(tmp_path / "photographs")
    own = [
        f"data.root={tmp_path}/photographs",
        "data.num_classes=3",
        "data.size=16",
        "data.resize=20",
        "data.limit=null",
    ]
    own += [
        "data=folder",
        "data.augment=rand",
        "data.erase=0.5",
        "loss=[kd,at]",
        "cache.views=3",
        "cache.dtype=float32",
    ]
    settings = build.settings(compose(*tiny, *own))
    data, networks = build.dataset(settings), build.networks(settings)
    cached = prepare_teacher(settings, networks, ONE, data)
    assert cached.live is not None  # it has just written the cache
    live = cached.live.beside(networks.distiller.target_specs)
    seen: dict[int, list[int]] = {}
    loader = build.loader(settings, ONE, data, "train", cached.views)
    for epoch in range(3):
        for batch, read in cached.targets(loader.epoch(epoch)):
            torch.testing.assert_close(read, live(batch), rtol=1e-4, atol=1e-5)
            for index, view in zip(batch.indices.tolist(), batch.views.tolist(), strict=True):
                seen.setdefault(index, []).append(view)
    assert all(sorted(views) == [0, 1, 2] for views in seen.values())  # each crop once in three epochs
    crops = data.train.render(torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert not torch.equal(crops[0], crops[1])
