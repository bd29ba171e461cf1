"""Runs with a teacher cache: equal to live ones, without the teacher, with every kind of loss."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Compose

from nst.cli.train import run
from nst.models.resnet import CifarResNet

TERMS = "loss=[kd,at,nst_poly]"
EXACT = ["cache.views=all", "cache.dtype=float32"]


def trained(compose: Compose, *overrides: str) -> tuple[dict, dict[str, torch.Tensor]]:
    summary = run(compose(*overrides))
    return summary, load_file(Path(summary["folder"]) / "student.safetensors")


@pytest.mark.parametrize("own", [["loss=[kd,fitnet]", "loss.fitnet.weight=0.1"], [TERMS, "teacher.precision=bf16"]])
def test_with_every_view_in_float32_a_run_equals_the_live_one_bit_for_bit(
    compose: Compose, tiny: list[str], capsys: pytest.CaptureFixture[str], own: list[str]
) -> None:
    """FitNet's targets stay live: they are large."""
    live, by_live = trained(compose, *tiny, *own)
    stored, by_cache = trained(compose, *tiny, *own, *EXACT)
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


def test_a_finished_run_of_another_teacher_than_the_named_caches_is_refused(
    compose: Compose, tiny: list[str], tmp_path: Path
) -> None:
    stored, named = [*tiny, "loss=kd", "cache.views=2"], f"cache.path={tmp_path}/theirs"
    trained(compose, *stored, named, "teacher.seed=1", f"outputs={tmp_path}/elsewhere")
    trained(compose, *stored)
    with pytest.raises(ValueError, match=r"is finished, but the teacher in .*theirs has changed"):
        trained(compose, *stored, named)
