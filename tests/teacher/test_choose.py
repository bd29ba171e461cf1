"""What is cached is decided once: cost of reading against computing, and the space on the disk."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch
from tests.teacher.test_cache import MAP, SOFT, VIEWS, opened, spec, split, teacher, written_cache

from nst.layers import LOGITS
from nst.losses import FitNet
from nst.models import resnet8
from nst.teacher import Choice, TeacherCache, choose_targets, compute_seconds, write_cache
from nst.teacher import cost as costs
from nst.teacher.choose import arrays_of

SHAPES = {"last": (64, 2, 2), LOGITS: (10,)}
HINT = spec("fitnet:0", FitNet())
CPU = torch.device("cpu")


def choose(cache: TeacherCache, computing: float | None = None, allow_large: bool | None = None) -> Choice | None:
    compute = None if computing is None else lambda _target_specs: computing
    return choose_targets(cache, resnet8(), [SOFT, MAP, HINT], SHAPES, allow_large, compute, device=CPU)


@pytest.mark.parametrize(("computing", "live"), [(1e-3, []), (1e-9, ["fitnet:0"])])
def test_the_choice_is_made_once_and_kept_in_the_manifest(tmp_path: Path, computing: float, live: list[str]) -> None:
    assert choose(opened(tmp_path)) is None
    made = choose(opened(tmp_path), computing)
    assert made is not None
    assert list(made.live) == live
    assert "reading 1.0 kB an image: about 0.001 ms; computing: " in made.by_cost["fitnet:0"]
    assert choose(opened(tmp_path)) == made
    assert choose(opened(tmp_path), 1 - computing) == made


def test_an_override_is_not_decided_by_cost(tmp_path: Path) -> None:
    assert choose(opened(tmp_path), allow_large=True) == Choice({})
    never = choose(opened(tmp_path), allow_large=False)
    assert never is not None
    assert list(never.live) == ["fitnet:0"]


def test_what_does_not_fit_on_the_disk_stays_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda path: usage(10**9, 10**9, costs.SPARE))
    made = choose(opened(tmp_path / "not" / "there"), 1.0)
    assert made is not None
    assert "; the cache needs 90.7 kB more, the disk has 100.0 MB free" in made.live["fitnet:0"]


def test_what_a_cache_of_an_earlier_version_holds_is_read(tmp_path: Path) -> None:
    written_cache(tmp_path, SOFT, MAP, HINT)
    assert choose(opened(tmp_path)) == Choice({})


def test_a_choice_made_before_the_teacher_is_loaded_keeps_the_teachers_entry(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    choose(cache, 1.0)
    cache.teacher = {"top1": 50.0}
    target_specs = [SOFT, MAP, HINT]
    needed = arrays_of(target_specs, resnet8(), SHAPES)
    write_cache(cache, teacher(*target_specs), split().loader(8, train=True), split().view_subset(VIEWS), needed)
    assert opened(tmp_path).teacher == {"top1": 50.0}
    assert opened(tmp_path).choices == cache.choices != {}


def test_computing_is_timed_no_deeper_than_the_layer(tmp_path: Path) -> None:
    model = resnet8()
    calls: list[str] = []
    model.layer2.register_forward_hook(lambda *_: calls.append("layer2"))
    early = spec("fitnet:0", FitNet(), layer="stage1")
    assert compute_seconds(model, [early], (3, 8, 8), 4, CPU, "fp32", True) > 0
    assert len(calls) <= 1  # the first pass, which finds out how deep it must go
    assert model.training
