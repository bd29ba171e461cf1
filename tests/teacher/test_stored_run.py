"""Whole runs from stored knowledge: equal to live ones, without the teacher, with every kind of loss."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Compose

from nst.commands.train import run
from nst.runs import teacher as teaching

TERMS = "loss=[kd,at,nst_poly]"
EXACT = ["knowledge=stored", "knowledge.views=all", "knowledge.dtype=float32"]


def trained(compose: Compose, *overrides: str) -> tuple[dict, dict[str, torch.Tensor]]:
    summary = run(compose(*overrides))
    return summary, load_file(Path(summary["folder"]) / "student.safetensors")


def test_with_every_view_in_float32_a_run_equals_the_live_one_bit_for_bit(compose: Compose, tiny: list[str]) -> None:
    live, by_live = trained(compose, *tiny, TERMS)
    stored, by_store = trained(compose, *tiny, TERMS, *EXACT)
    assert live["last"] == stored["last"]
    assert all(torch.equal(by_live[key], by_store[key]) for key in by_live)
    for key in ("top1", "sha256", "parameters"):
        assert live["teacher"][key] == stored["teacher"][key]


def test_the_second_run_does_not_touch_the_teacher(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = trained(compose, *tiny, TERMS, "knowledge=stored", "knowledge.views=2")
    assert "2 cached views in turn, not random ones of all 9" in capsys.readouterr().out

    def untouched(*_: object) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(teaching, "load_weights", untouched)
    second, _ = trained(compose, *tiny, "loss=at", "knowledge=stored", "knowledge.views=2", "seed=1")
    assert second["teacher"] == first["teacher"]


def test_a_store_that_was_carried_elsewhere_needs_no_weights(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    node = ["knowledge=stored", "knowledge.views=2", f"knowledge.path={tmp_path}/mine"]
    first, _ = trained(compose, *tiny, "loss=kd", *node)
    elsewhere, _ = trained(compose, *tiny, "loss=kd", *node, f"outputs={tmp_path}/elsewhere")
    assert elsewhere["last"] == first["last"]
    assert not list((tmp_path / "elsewhere").glob("*/none-*"))
    with pytest.raises(ValueError, match=r"views: 2 there, 3 now"):
        trained(compose, *tiny, "loss=kd", *node, "knowledge.views=3")


def test_hints_keep_a_live_teacher_beside_the_store(
    compose: Compose, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*tiny, "loss=[kd,fitnet]", "loss.fitnet.weight=0.1"]
    live, _ = trained(compose, *small)
    mixed, _ = trained(compose, *small, *EXACT)
    assert "loss.fitnet uses a live teacher" in capsys.readouterr().out
    stored, _ = trained(compose, *small, *EXACT, "knowledge.allow_large=true")
    assert live["last"] == mixed["last"] == stored["last"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["knowledge.views=4"], r"knowledge\.views is for stored knowledge only; add knowledge=stored"),
        (["knowledge=stored", "knowledge.views=0"], r"knowledge\.views=0: a number of views"),
        (["knowledge=stored", "knowledge.views=some"], r"knowledge\.views=some"),
        (["knowledge=stored", "knowledge.dtype=bfloat16"], r"knowledge\.dtype=bfloat16: one of float16, float32"),
        (["knowledge=stored", "loss=fitnet"], r"knowledge=stored has nothing to cache\. loss\.fitnet"),
    ],
)
def test_what_cannot_be_is_said(compose: Compose, tiny: list[str], overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(compose(*tiny, *overrides))


def test_more_views_than_there_are_means_all(
    compose: Compose, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trained(compose, *tiny, "loss=at", "knowledge=stored")  # 16; the digits have 9
    assert ": 9 views of 40 images" in capsys.readouterr().out


def test_without_a_teacher_there_is_no_knowledge(compose: Compose, tiny: list[str]) -> None:
    plain, _ = trained(compose, *tiny, "loss=ce")
    stored, _ = trained(compose, *tiny, "loss=ce", *EXACT)
    assert stored["was_finished"]
    assert stored["folder"] == plain["folder"]


def test_where_the_cache_lies_changes_nothing_and_is_no_part_of_the_run(compose: Compose, tiny: list[str]) -> None:
    node = ["loss=kd", "knowledge=stored", "knowledge.views=2"]
    first, _ = trained(compose, *tiny, *node, "knowledge.residence=disk")
    again, _ = trained(compose, *tiny, *node, "knowledge.residence=host")
    assert again["was_finished"]
    assert again["folder"] == first["folder"]
    with pytest.raises(ValueError, match=r"knowledge\.residence=gpu: one of auto, device, host, disk is needed"):
        trained(compose, *tiny, *node, "knowledge.residence=gpu")
    with pytest.raises(ValueError, match=r"knowledge\.residence is for stored knowledge only"):
        trained(compose, *tiny, "loss=kd", "knowledge.residence=disk")


def test_the_precision_of_the_teacher_is_part_of_run_and_cache(compose: Compose, tiny: list[str]) -> None:
    coarse = ["teacher.precision=bf16"]
    exact, _ = trained(compose, *tiny, TERMS)
    live, by_live = trained(compose, *tiny, TERMS, *coarse)
    _, by_store = trained(compose, *tiny, TERMS, *EXACT, *coarse)
    assert live["teacher"]["sha256"] == exact["teacher"]["sha256"]  # trained once, in the precision of its own recipe
    assert live["folder"] != exact["folder"]
    assert live["teacher"]["loss"] != exact["teacher"]["loss"]
    assert all(torch.equal(by_live[key], by_store[key]) for key in by_live)
    trained(compose, *tiny, TERMS, *EXACT)
    assert len(list(Path(compose().outputs).rglob("manifest.json"))) == 2
    with pytest.raises(ValueError, match=r"teacher\.precision=fp16: one of fp32, bf16 is needed"):
        run(compose(*tiny, TERMS, "teacher.precision=fp16"))
