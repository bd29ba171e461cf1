"""Runs on digits with the losses of 2022 to 2025 in one sum: cached, and continued after a kill."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Compose

from nst.cli.train import run
from nst.losses import MGD

STAGES = ",".join(f"{{teacher: logits, student: {layer}}}" for layer in ("stage1", "stage2", "stage3", "logits"))
OFA = f"loss.ofa.layers=[{STAGES}]"  # digits' networks have three stages
SUM = [
    "loss=[ttm,nkd,rld,abkd,wkd_l,wkd_f,cat_kd,sdd,mgd,ofa]", OFA, "loss.ttm.weight=0.1", "loss.abkd.weight=1",
    "loss.wkd_l.transport=1", "loss.cat_kd.weight=0.1", "loss.rld.beta=1", "loss.wkd_l.decay_from=1", "loss.ofa.weight=0.1",
    "data.limit=48",  # batches of one size: some processors round a map of logits differently in others
]  # fmt: skip


def trained(compose: Compose, *overrides: str) -> tuple[dict, dict[str, torch.Tensor]]:
    summary = run(compose(*overrides))
    return summary, load_file(Path(summary["folder"]) / "student.safetensors")


def test_their_sum_from_a_cache_killed_equals_the_live_one_bit_for_bit(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks, ramps and the classes' similarity are those of the whole run."""
    live, by_live = trained(compose, *tiny, *SUM)
    cache = ["cache.views=all", "cache.dtype=float32", "cache.large=true", "trainer.checkpoint_every=2 steps"]
    forward, calls = MGD.forward, []

    def die_at_five(self: MGD, *arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("power cut")
        return forward(self, *arguments)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(MGD, "forward", die_at_five)
        with pytest.raises(RuntimeError, match="power cut"):
            run(compose(*tiny, *SUM, *cache))
    cached, by_cache = trained(compose, *tiny, *SUM, *cache)
    assert live["last"] == cached["last"]
    assert all(torch.equal(by_live[key], by_cache[key]) for key in by_live)
    arrays = [path.name for path in Path(cached["folder"]).parents[2].glob("cache/*/*")]
    assert len([name for name in arrays if name.startswith("logits.")]) == 1  # one array for all losses on logits


def test_the_similarity_of_the_classes_is_computed_once(
    compose: Compose, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(compose(*tiny, "loss=wkd_l"))
    assert "computed once from the teacher over 40 images" in capsys.readouterr().out
    run(compose(*tiny, "loss=wkd_l", "seed=1"))
    assert "computed once" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"class \d has 1 training images"):
        run(compose(*tiny, "loss=wkd_l", "data.limit=10"))


def test_what_does_not_fit_is_named(compose: Compose, tiny: list[str]) -> None:
    with pytest.raises(ValueError, match=r"loss\.mgd.*maps of one size"):
        run(compose(*tiny, "loss=mgd", "loss.mgd.layers=[{teacher: stage1, student: stage2}]", "dry_run=true"))
    with pytest.raises(ValueError, match=r"loss\.sdd.*a channel for each class"):
        run(compose(*tiny, "loss=sdd", "loss.sdd.layers=stage1", "dry_run=true", "model=vgg8"))
    with pytest.raises(ValueError, match=r"loss\.mgd needs the index of each image"):
        run(compose(*tiny, "loss=mgd", "trainer.mixup=1", "dry_run=true"))
