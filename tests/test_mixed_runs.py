"""Runs on mixed images: what teacher and student see, what is counted, and what is refused."""

import pytest
import torch
from tests.conftest import Compose
from torch.nn import functional as F

from nst import build
from nst.cli.train import run
from nst.data.batch import MixingLoader
from nst.dist import Dist
from nst.run import prepare_teacher

ONE = Dist(0, 1, torch.device("cpu"))


def test_teacher_and_student_see_the_same_mixed_images(compose: Compose, tiny: list[str]) -> None:
    settings = build.settings(compose(*tiny, "loss=kd", "trainer.mixup=1.0"))
    data, networks = build.dataset(settings), build.networks(settings)
    side = prepare_teacher(settings, networks, ONE, data)
    assert side.live is not None
    mixed = build.loader(settings, ONE, data, "train")
    assert isinstance(mixed, MixingLoader)
    assert not isinstance(build.loader(settings, ONE, data, "test"), MixingLoader)
    batch = next(mixed.epoch(0))
    plain = data.train.render(batch.indices, batch.views)
    assert not torch.equal(batch.images, plain)
    torch.testing.assert_close(side(batch)["kd:0"]["logits"], side.live.model(batch.images))
    logits, values = networks.distiller(batch.images, batch.labels, side(batch))
    torch.testing.assert_close(values["ce"], F.cross_entropy(logits, batch.labels))


def test_accumulation_and_relational_losses_take_mixed_images(compose: Compose, tiny: list[str]) -> None:
    mixing = ["trainer.mixup=0.5", "trainer.cutmix=1.0"]
    summary = run(compose(*tiny, "loss=kd", *mixing, "trainer.accumulate=2"))
    assert summary["steps"] == 6
    own = ["loss=ce", "+loss.own._target_=tests.kinds.Relational", "+loss.own.weight=1.0"]
    assert run(compose(*tiny, *own, *mixing))["folder"] != summary["folder"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.mixup=-1"], r"trainer\.mixup=-1\.0: a number at least 0 is needed"),
        (["trainer.cutmix=1", "cache.views=16"], r"trainer\.cutmix=1\.0: a teacher cache has no mixed images"),
        (
            ["trainer.mixup=1", "+loss.own._target_=tests.kinds.Ramped", "+loss.own.weight=1.0"],
            r"trainer\.mixup=1\.0: loss\.own needs the labels of each image, and a mixed image has two",
        ),
        (
            ["trainer.mixup=1", "+loss.own._target_=tests.kinds.Remembering", "+loss.own.weight=1.0"],
            r"trainer\.mixup=1\.0: loss\.own needs the index",
        ),
    ],
)
def test_what_cannot_be_is_said(compose: Compose, tiny: list[str], overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build.settings(compose(*tiny, "loss=kd", *overrides))
