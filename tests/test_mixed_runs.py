"""Runs on mixed images: what teacher and student see, what is counted, and what is refused."""

import torch
from tests.conftest import Compose
from torch.nn import functional as F

from nst import build
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
