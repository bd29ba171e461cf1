"""Runs with a teacher cache: equal to live ones, without the teacher, with every kind of loss."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import ROOT, Compose
from tests.distributed.conftest import output, torchrun

from nst.cli.train import run
from nst.data.memory import Renderer
from nst.models.resnet import CifarResNet
from nst.runs import teacher_cache as making
from nst.teacher import LiveTeacher

TERMS = "loss=[kd,at,nst_poly]"
EXACT = ["cache.views=all", "cache.dtype=float32"]


def trained(compose: Compose, *overrides: str) -> tuple[dict, dict[str, torch.Tensor]]:
    target = run(compose(*overrides))
    return target, load_file(Path(target["folder"]) / "student.safetensors")


def test_with_every_view_in_float32_a_run_equals_the_live_one_bit_for_bit(compose: Compose, tiny: list[str]) -> None:
    live, by_live = trained(compose, *tiny, TERMS)
    stored, by_cache = trained(compose, *tiny, TERMS, *EXACT)
    assert live["last"] == stored["last"]
    assert all(torch.equal(by_live[key], by_cache[key]) for key in by_live)
    for key in ("top1", "sha256", "parameters"):
        assert live["teacher"][key] == stored["teacher"][key]


def test_the_second_run_runs_the_teacher_on_the_first_images_only(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = trained(compose, *tiny, TERMS, "cache.views=2")
    assert "2 cached views in turn, not random ones of all 9" in capsys.readouterr().out
    sizes: list[int] = []
    forward = LiveTeacher.logits

    def counting(self: LiveTeacher, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(LiveTeacher, "logits", counting)
    second, _ = trained(compose, *tiny, "loss=at", "cache.views=2", "seed=1")
    assert second["teacher"] == first["teacher"]
    assert sizes == [8]


def test_a_second_run_whose_images_torch_renders(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; on the CPU it is numpy."""
    monkeypatch.setattr(Renderer, "_by_numpy", Renderer._by_torch)
    stored = [*tiny, "loss=kd", "cache.views=2"]
    trained(compose, *stored)
    trained(compose, *stored, "seed=1")


@pytest.mark.parametrize("added", ["loss=kd", "loss=[kd,at]"])
def test_a_cache_from_before_a_change_of_the_teachers_code_is_refused(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch, added: str
) -> None:
    stored = ["cache.views=2"]
    trained(compose, *tiny, "loss=kd", *stored)
    forward = CifarResNet.forward
    monkeypatch.setattr(CifarResNet, "forward", lambda self, images: forward(self, images).flip(1))
    with pytest.raises(
        ValueError, match=r"resnet.* is not of this teacher any more: logits.*loss\.kd has changed, delete"
    ):
        trained(compose, *tiny, added, *stored, "seed=1", "teacher.min_accuracy=0")


def test_a_copied_cache_needs_no_weights(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    node = ["cache.views=2", f"cache.path={tmp_path}/mine"]
    first, _ = trained(compose, *tiny, "loss=kd", *node)
    elsewhere, _ = trained(compose, *tiny, "loss=kd", *node, f"outputs={tmp_path}/elsewhere")
    assert elsewhere["last"] == first["last"]
    assert not list((tmp_path / "elsewhere").glob("*/none-*"))
    with pytest.raises(ValueError, match=r"views: 2 there, 3 now"):
        trained(compose, *tiny, "loss=kd", *node, "cache.views=3")


def test_a_finished_run_of_another_teacher_than_the_named_caches_is_refused(
    compose: Compose, tiny: list[str], tmp_path: Path
) -> None:
    stored = [*tiny, "loss=kd", "cache.views=2"]
    named = f"cache.path={tmp_path}/theirs"
    trained(compose, *stored, named, "teacher.seed=1", f"outputs={tmp_path}/elsewhere")
    trained(compose, *stored)
    with pytest.raises(ValueError, match=r"is finished, with a teacher of SHA-256 \w+; .*theirs is of a teacher of"):
        trained(compose, *stored, named)


def test_hints_keep_a_live_teacher_beside_the_cache(
    compose: Compose, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*tiny, "loss=[kd,fitnet]", "loss.fitnet.weight=0.1"]
    live, _ = trained(compose, *small)
    mixed, _ = trained(compose, *small, *EXACT, "cache.large=false")
    assert "loss.fitnet uses a live teacher: its target is as large as the feature" in capsys.readouterr().out
    stored, _ = trained(compose, *small, *EXACT, "cache.large=true")
    assert live["last"] == mixed["last"] == stored["last"]


HINTS = ["loss=[kd,fitnet]", "loss.fitnet.weight=0.1", "cache.views=2"]


def test_large_summaries_are_cached_where_reading_is_cheaper_and_a_cache_keeps_its_choice(
    compose: Compose,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = r"reading 512 bytes an image: about 0\.00051 ms; computing: "
    costs = iter([1e-3, 0.0])
    monkeypatch.setattr(making, "compute_seconds", lambda *_, **__: next(costs))  # measured once for a cache
    for place, line in (("read", "is cached"), ("computed", "uses a live teacher")):
        for seed in (0, 1):
            trained(
                compose,
                *tiny,
                *HINTS,
                f"cache.path={tmp_path}/{place}",
                f"outputs={tmp_path}/{place}",
                f"seed={seed}",
            )
            assert re.search(f"loss.fitnet {line}: {figures}", capsys.readouterr().out)
    names = [[array.name for array in (tmp_path / place).glob("*.npy")] for place in ("read", "computed")]
    assert [len(found) for found in names] == [2, 1]


def test_with_nothing_worth_caching_a_run_has_its_views_and_a_live_teacher(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "compute_seconds", lambda *_, **__: 0.0)
    live, _ = trained(compose, *tiny, *HINTS, "loss=fitnet", "cache.dtype=float32")
    cached, _ = trained(compose, *tiny, *HINTS, "loss=fitnet", "cache.dtype=float32", "cache.large=true")
    assert live["last"] == cached["last"]
    assert live["folder"] != cached["folder"]


def test_a_run_of_an_earlier_version_whose_default_was_false_is_the_same_run(compose: Compose, tiny: list[str]) -> None:
    first, _ = trained(compose, *tiny, *HINTS, "cache.large=false")
    again, _ = trained(compose, *tiny, *HINTS)
    assert again["was_finished"]
    assert again["folder"] == first["folder"]


def test_two_ranks_agree_on_what_is_cached(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    [job] = torchrun(
        str(ROOT / "train.py"), f"outputs={tmp_path}/ranks", *tiny, *HINTS, "trainer.sync_bn=true", ranks=2
    )
    assert output(job).count("loss.fitnet is cached: reading 512 bytes an image") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cache.views=4"], r"knowledge\.views is for the teacher cache only; add cache.views=16"),
        (["cache.views=0"], r"knowledge\.views=0: a number of views"),
        (["cache.views=some"], r"knowledge\.views=some"),
        (["cache.views=16", "cache.dtype=bfloat16"], r"knowledge\.dtype=bfloat16: one of float16, float32"),
        (
            ["cache.views=16", "cache.large=false", "loss=fitnet"],
            r"cache.views=16 has nothing to cache\. loss\.fitnet",
        ),
    ],
)
def test_invalid_settings_are_refused(compose: Compose, tiny: list[str], overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(compose(*tiny, *overrides))


def test_more_views_than_there_are_means_all(
    compose: Compose, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trained(compose, *tiny, "loss=at", "cache.views=16")  # 16; the digits have 9
    assert ": 9 views of 40 images" in capsys.readouterr().out


def test_without_a_teacher_there_is_no_cache(compose: Compose, tiny: list[str]) -> None:
    plain, _ = trained(compose, *tiny, "loss=ce")
    stored, _ = trained(compose, *tiny, "loss=ce", *EXACT)
    assert stored["was_finished"]
    assert stored["folder"] == plain["folder"]


def test_where_the_cache_is_kept_changes_neither_result_nor_run(compose: Compose, tiny: list[str]) -> None:
    node = ["loss=kd", "cache.views=2"]
    first, _ = trained(compose, *tiny, *node, "knowledge.residence=disk")
    again, _ = trained(compose, *tiny, *node, "knowledge.residence=host")
    assert again["was_finished"]
    assert again["folder"] == first["folder"]
    with pytest.raises(ValueError, match=r"knowledge\.residence=gpu: one of auto, device, host, disk is needed"):
        trained(compose, *tiny, *node, "knowledge.residence=gpu")
    with pytest.raises(ValueError, match=r"knowledge\.residence is for the teacher cache only"):
        trained(compose, *tiny, "loss=kd", "knowledge.residence=disk")


def test_the_precision_of_the_teacher_is_part_of_run_and_cache(compose: Compose, tiny: list[str]) -> None:
    coarse = ["teacher.precision=bf16"]
    exact, _ = trained(compose, *tiny, TERMS)
    live, by_live = trained(compose, *tiny, TERMS, *coarse)
    _, by_cache = trained(compose, *tiny, TERMS, *EXACT, *coarse)
    assert live["teacher"]["sha256"] == exact["teacher"]["sha256"]  # trained once, in the precision of its own recipe
    assert live["folder"] != exact["folder"]
    assert live["teacher"]["loss"] != exact["teacher"]["loss"]
    assert all(torch.equal(by_live[key], by_cache[key]) for key in by_live)
    trained(compose, *tiny, TERMS, *EXACT)
    assert len(list(Path(compose().outputs).rglob("manifest.json"))) == 2
    with pytest.raises(ValueError, match=r"teacher\.precision=tf32: one of fp32, bf16, fp16 is needed"):
        run(compose(*tiny, TERMS, "teacher.precision=tf32"))
