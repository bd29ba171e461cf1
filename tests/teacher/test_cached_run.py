"""Runs with a teacher cache: equal to live ones, without the teacher, with every kind of loss."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Compose
from tests.data.samples import write_tree

from nst import build
from nst.cli.train import run
from nst.dist import Dist
from nst.models.resnet import CifarResNet
from nst.run import prepare_teacher

TERMS = "loss=[kd,at,nst_poly]"


def trained(compose: Compose, *overrides: str) -> tuple[dict, dict[str, torch.Tensor]]:
    summary = run(compose(*overrides))
    return summary, load_file(Path(summary["folder"]) / "student.safetensors")


@pytest.mark.parametrize("own", [["loss=[kd,fitnet]", "loss.fitnet.weight=0.1"], [TERMS, "teacher.precision=bf16"]])
def test_with_every_view_in_float32_a_run_equals_the_live_one_bit_for_bit(
    compose: Compose, tiny: list[str], capsys: pytest.CaptureFixture[str], own: list[str]
) -> None:
    """FitNet's targets stay live: they are large."""
    live, by_live = trained(compose, *tiny, *own)
    stored, by_cache = trained(compose, *tiny, *own, "cache.views=all", "cache.dtype=float32")
    live_beside = "loss.fitnet uses a live teacher: its target has 256 values an image and view, the feature 256"
    assert (live_beside in capsys.readouterr().out) == (TERMS not in own)
    assert live["last"] == stored["last"]
    assert all(torch.equal(by_live[key], by_cache[key]) for key in by_live)
    assert live["teacher"] == stored["teacher"]


def test_the_teacher_is_measured_and_cached_once(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the same weights, images, normalisation and precision."""
    seen: list[int] = []  # how many images the teacher has run on, call by call
    forward = CifarResNet.forward

    def counting(self: CifarResNet, images: torch.Tensor) -> torch.Tensor:
        if not self.training and not any(p.requires_grad for p in self.parameters()):
            seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(CifarResNet, "forward", counting)
    words = [*tiny, "trainer.eval_batch_size=360", "cache.views=2"]
    first, _ = trained(compose, *words, TERMS)
    assert seen.count(360) == 1
    assert "2 cached views in turn, not random ones of all 9" in capsys.readouterr().out
    seen.clear()
    again, _ = trained(compose, *words, "loss=at", "seed=1")
    assert again["teacher"] == first["teacher"]
    assert set(seen) == {8}  # to fold its batch norms
    other, _ = trained(compose, *words, "loss=at", "teacher.precision=bf16")
    assert seen.count(360) == 1
    assert other["teacher"]["loss"] != first["teacher"]["loss"]
    with pytest.raises(ValueError, match=r"min_accuracy=99\.5 is required"):
        trained(compose, *words, "loss=at", "seed=2", "teacher.min_accuracy=99.5")


def test_a_copied_cache_needs_no_weights(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    node = ["loss=kd", "cache.views=2", f"cache.path={tmp_path}/mine"]
    first, _ = trained(compose, *tiny, *node)
    elsewhere, _ = trained(compose, *tiny, *node, f"outputs={tmp_path}/elsewhere")
    assert elsewhere["last"] == first["last"]
    assert elsewhere["teacher"] == first["teacher"]
    assert not list((tmp_path / "elsewhere").glob("*/none-*"))
    with pytest.raises(ValueError, match=r"views\.number: 2 there, 3 now"):
        trained(compose, *tiny, *node, "cache.views=3")
    with pytest.raises(ValueError, match=r"lacks targets of this run: name its teacher\.weights"):
        trained(compose, *tiny, *node, "loss=[kd,at]", f"outputs={tmp_path}/third")

    trained(compose, *tiny, *node[:2], "teacher.seed=1")  # the same run by a teacher of its own
    with pytest.raises(ValueError, match=r"is finished, but the teacher in .*mine has changed"):
        trained(compose, *tiny, *node, "teacher.seed=1")


def test_cached_targets_of_photographs_are_of_the_same_crop(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    """Some random crops of each image, fixed by (index, slot)."""
    write_tree(tmp_path / "photographs")
    own = [
        "data=folder", f"data.root={tmp_path}/photographs", "data.num_classes=3", "data.size=16", "data.resize=20",
        "data.limit=null", "trainer.workers=0", "data.augment=rand", "data.erase=0.5", "loss=[kd,at]", "cache.views=3", "cache.dtype=float32",
    ]  # fmt: skip
    settings, one = build.settings(compose(*tiny, *own)), Dist(0, 1, torch.device("cpu"))
    data, networks = build.dataset(settings), build.networks(settings)
    cached = prepare_teacher(settings, networks, one, data)
    assert cached.live is not None  # it has just written the cache
    live = cached.live.beside(networks.distiller.target_specs)
    seen: dict[int, list[int]] = {}
    loader = build.loader(settings, one, data, "train", cached.views)
    for epoch in range(3):
        for batch, read in cached.targets(loader.epoch(epoch)):
            torch.testing.assert_close(read, live(batch), rtol=1e-4, atol=1e-5)
            for index, view in zip(batch.indices.tolist(), batch.views.tolist(), strict=True):
                seen.setdefault(index, []).append(view)
    assert all(sorted(views) == [0, 1, 2] for views in seen.values())  # each crop once in three epochs
