"""Cached targets of photographs: some random crops of each image, fixed by (index, slot)."""

from pathlib import Path

import pytest
import torch
from tests.conftest import Compose
from tests.data.samples import write_tree

from nst import build
from nst.dist import Dist
from nst.run import prepare_teacher

ONE = Dist(0, 1, torch.device("cpu"))
CACHED = ["loss=[kd,at]", "cache.views=3", "cache.dtype=float32"]


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    write_tree(tmp_path / "photographs")
    return [
        "data=folder", f"data.root={tmp_path}/photographs", "data.num_classes=3", "data.size=16", "data.resize=20", "model=resnet8",
        "teacher=resnet8", "teacher.min_accuracy=0", "trainer.workers=1", "trainer.epochs=4", "trainer.batch_size=8",
        "trainer.heatmaps=false", "trainer.log_every=2", "teacher.train.epochs=1", "teacher.train.batch_size=8",
        "trainer.device=cpu", "trainer.compile=false", "tracker=[]",
    ]  # fmt: skip


@pytest.mark.parametrize("augmented", [[], ["data.augment=rand", "data.erase=0.5"]])
def test_cached_targets_are_those_of_the_same_crop(
    compose: Compose, photographs: list[str], augmented: list[str]
) -> None:
    settings = build.settings(compose(*photographs, *CACHED, *augmented))
    data, networks = build.dataset(settings), build.networks(settings)
    cached = prepare_teacher(settings, networks, ONE, data)
    assert cached.live is not None  # it has just written the cache
    live = cached.live.beside(networks.distiller.target_specs)
    seen: dict[int, list[int]] = {}
    loader = build.loader(settings, ONE, data, "train", cached.views)
    for epoch in range(3):
        for batch, read in cached.targets(loader.epoch(epoch)):
            computed = live(batch)
            for key, name in ((key, name) for key, target in computed.items() for name in target):
                torch.testing.assert_close(read[key][name], computed[key][name], rtol=1e-4, atol=1e-5)
            for index, view in zip(batch.indices.tolist(), batch.views.tolist(), strict=True):
                seen.setdefault(index, []).append(view)
    assert all(sorted(views) == [0, 1, 2] for views in seen.values())  # each crop once in three epochs
    crops = data.train.render(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    assert not torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[2], crops[3])
