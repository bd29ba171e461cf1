"""A teacher cache returns the teacher's targets, continues interrupted writing, and refuses another identity."""

import json
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nst.data.batch import Batch
from nst.data.memory import MemorySplit
from nst.data.views import ViewScheme
from nst.distiller import Targets, TargetSpec
from nst.layers import LOGITS, resolve
from nst.losses import AT, KD, NST, FitNet, Shape, TransferLoss
from nst.models import resnet8
from nst.teacher import Array, CachedTeacher, LiveTeacher, TeacherCache, arrays, kept_live, write_cache
from nst.teacher import cache as cache_module
from nst.teacher.layout import readable_bytes

IMAGES, VIEWS = 21, 4
IDENTITY = {"teacher": {"name": "resnet8", "sha256": "abc"}, "views": VIEWS, "dtype": "float32"}


def split() -> MemorySplit:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return MemorySplit(pixels, torch.zeros(IMAGES, dtype=torch.long), ViewScheme(8, 1, True), (0.5,) * 3, (0.5,) * 3)


def teacher(*target_specs: TargetSpec) -> LiveTeacher:
    torch.manual_seed(0)
    return LiveTeacher(resnet8(), target_specs)


def spec(key: str, loss: TransferLoss, layer: str = "last") -> TargetSpec:
    return TargetSpec(key, layer, loss, (10,) if loss.on_logits else (64, 2, 2))


SOFT, POLY, MAP = spec("kd:0", KD(), LOGITS), spec("nst:0", NST()), spec("at:0", AT())


def arrays_for(*target_specs: TargetSpec) -> list[Array]:
    model = resnet8()
    shape = {"last": (64, 2, 2), "layer3": (64, 2, 2), LOGITS: (10,)}
    return [array for r in target_specs for array in arrays(r, resolve(model, r.layer), shape[r.layer])]


def opened(folder: Path, dtype: str = "float32", **identity: Any) -> TeacherCache:
    return TeacherCache(folder, {**IDENTITY, **identity}, IMAGES, VIEWS, dtype)


def written_cache(folder: Path, *target_specs: TargetSpec, dtype: str = "float32") -> TeacherCache:
    cache = opened(folder, dtype)
    live = teacher(*target_specs)
    write_cache(cache, live, split().loader(8, train=True), split().view_subset(VIEWS), arrays_for(*target_specs))
    return cache


def some_batch(indices: list[int], slots: list[int]) -> Batch:
    subset, i = split().view_subset(VIEWS).long(), torch.tensor(indices)
    views = subset[i, torch.tensor(slots)]
    return Batch(split().render(i, views), torch.zeros(len(i), dtype=torch.long), i, views)


def assert_same(found: Targets, expected: Targets, **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, target in expected.items():
        assert found[key].keys() == target.keys()
        for name, value in target.items():
            torch.testing.assert_close(found[key][name].float(), value, **tolerance)


BATCH = some_batch([20, 3, 3, 0, 11, 7], [0, 1, 3, 2, 3, 0])


@pytest.mark.parametrize("residence", ["host", "disk", "device"])
def test_cached_summaries_equal_the_live_teachers(tmp_path: Path, residence: Any) -> None:
    """Bit for bit, in batches of a size at which the CPU's kernels treat an image as in those that the cache was written in."""
    target_specs = (SOFT, POLY, MAP)
    cache = written_cache(tmp_path, *target_specs)
    cached = CachedTeacher(
        cache, arrays_for(*target_specs), split().view_subset(VIEWS), torch.device("cpu"), residence=residence
    )
    assert_same(cached(BATCH), teacher(*target_specs)(BATCH), rtol=0, atol=0)
    cached.prefetch(BATCH)
    later = some_batch([1, 2, 5, 8, 13, 17], [0, 1, 2, 3, 0, 1])
    cached.prefetch(later)
    assert_same(cached(BATCH), teacher(*target_specs)(BATCH), rtol=0, atol=0)
    assert_same(cached(later), teacher(*target_specs)(later), rtol=0, atol=0)


def test_half_precision_is_half_the_size_and_close(tmp_path: Path) -> None:
    cache = written_cache(tmp_path, POLY, dtype="float16")
    assert cache.bytes((10,)) == VIEWS * IMAGES * 10 * 2
    cached = CachedTeacher(cache, arrays_for(POLY), split().view_subset(VIEWS), torch.device("cpu"))
    assert cached(BATCH)["nst:0"]["gram"].dtype == torch.float16
    assert_same(cached(BATCH), teacher(POLY)(BATCH), rtol=1e-3, atol=1e-4)


class CutOff(LiveTeacher):
    """Fails after some batches, and counts them."""

    after = 10**9
    calls = 0

    def __call__(self, batch: Batch) -> Targets:
        if self.calls == self.after:
            raise KeyboardInterrupt
        self.calls += 1
        return super().__call__(batch)


@pytest.mark.parametrize("after", [2, 7])
def test_a_half_written_cache_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    monkeypatch.setattr("nst.teacher.write.SYNC_SECONDS", 0)
    torch.manual_seed(0)
    live = CutOff(resnet8(), [POLY])
    live.after = after
    loader, subset = split().loader(8, train=True), split().view_subset(VIEWS)
    with pytest.raises(KeyboardInterrupt):
        write_cache(opened(tmp_path), live, loader, subset, arrays_for(POLY))
    (array,) = arrays_for(POLY)
    reopened = opened(tmp_path)
    assert 0 < reopened.written(array.name) < reopened.rows
    live.after = 10**9
    write_cache(reopened, live, loader, subset, arrays_for(POLY))
    assert live.calls == VIEWS * 3  # each batch of each view once
    complete = written_cache(tmp_path / "whole", POLY)
    assert complete.file(array.name).read_bytes() == reopened.file(array.name).read_bytes()
    assert complete.state == reopened.state


def test_a_loss_added_later_writes_its_own_arrays_only(tmp_path: Path) -> None:
    written_cache(tmp_path, SOFT)
    (logits,) = arrays_for(SOFT)
    before = opened(tmp_path).file(logits.name).stat().st_mtime_ns
    both = written_cache(tmp_path, SOFT, MAP)
    assert both.missing(arrays_for(SOFT, MAP)) == []
    assert both.file(logits.name).stat().st_mtime_ns == before


def test_losses_with_one_summary_share_it() -> None:
    poly, other = NST(), NST(degree=2, c=1.0)
    one, two = arrays_for(spec("a:0", poly)), arrays_for(spec("b:0", other, layer="layer3"))
    assert [a.name for a in one] == [a.name for a in two if a.tensor == "gram"]
    assert arrays_for(SOFT)[0].name == arrays_for(spec("x:0", KD(temperature=2), LOGITS))[0].name
    names = [arrays_for(spec("x:0", loss))[0].name for loss in (AT(), AT(p=1), NST(), NST(convention="official"))]
    assert len(set(names)) == 4


def test_a_summary_as_large_as_the_feature_stays_live_unless_allowed() -> None:
    hint, gaussian = spec("fitnet:0", FitNet()), spec("gauss:0", NST("gaussian"))
    shapes = {"last": (64, 2, 2), LOGITS: (10,)}
    reasons = kept_live([SOFT, POLY, hint, gaussian], shapes, allow_large=False)
    assert list(reasons) == ["fitnet:0", "gauss:0"]
    assert "256 values" in reasons["fitnet:0"]
    assert kept_live([hint, gaussian], shapes, allow_large=True) == {}


def test_a_loss_of_unknown_summary_is_never_cached() -> None:
    class Own(AT):
        target_key = None  # pyright: ignore[reportAssignmentType]

    assert "target_key" in kept_live([spec("own:0", Own())], {"last": (64, 2, 2)}, allow_large=True)["own:0"]


def test_a_subclass_with_another_summary_does_not_share_the_arrays_of_the_loss_whose_key_it_inherits() -> None:
    class Half(AT):
        def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
            return super().target(teacher_feature[:, ::2], student_shape)

    class Named(Half):
        @property
        def target_key(self) -> str:
            return "half-" + super().target_key

    class Weighted(AT):
        def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
            return 2 * super().forward(student_feature, target)

    target_specs = [spec(f"{loss.__name__}:0", loss()) for loss in (Half, Named, Weighted)]
    assert list(kept_live(target_specs, {"last": (64, 2, 2)}, allow_large=True)) == ["Half:0"]


def test_a_cache_of_something_else_is_refused_naming_the_fields(tmp_path: Path) -> None:
    written_cache(tmp_path, SOFT)
    with pytest.raises(ValueError, match=r"teacher\.sha256: 'abc' there, 'xyz' now.*delete the folder"):
        opened(tmp_path, teacher={"name": "resnet8", "sha256": "xyz"})


def test_an_array_of_another_shape_than_the_loss_plans_is_refused(tmp_path: Path) -> None:
    cache = written_cache(tmp_path, SOFT)
    (array,) = arrays_for(SOFT)
    with pytest.raises(ValueError, match=r"npy has \(10,\) an image, loss\.kd now plans \(5,\): its code has changed"):
        cache.missing([replace(array, shape=(5,))])


@pytest.mark.parametrize("residence", ["host", "disk"])
def test_damage_is_found(tmp_path: Path, residence: Any) -> None:
    cache = written_cache(tmp_path, SOFT)
    (array,) = arrays_for(SOFT)
    content = bytearray(cache.file(array.name).read_bytes())
    content[-3] ^= 1
    cache.file(array.name).write_bytes(content)
    with pytest.raises(ValueError, match="view 3 has another SHA-256"):
        CachedTeacher(opened(tmp_path), [array], split().view_subset(VIEWS), torch.device("cpu"), residence=residence)
    cache.file(array.name).write_bytes(content[:-8])
    with pytest.raises(ValueError, match=r"is damaged .*delete it"):
        opened(tmp_path)
    cache.file(array.name).unlink()
    assert opened(tmp_path).missing([array]) == [array]
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        opened(tmp_path)


def test_a_disk_too_small_is_known_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**8))
    live = CutOff(resnet8(), [POLY])
    with pytest.raises(ValueError, match=r"needs 3\.4 kB more, the disk has 100\.0 MB free; ask for fewer"):
        write_cache(opened(tmp_path), live, split().loader(8, train=True), split().view_subset(VIEWS), arrays_for(POLY))
    assert live.calls == 0


@pytest.mark.parametrize(("factor", "used"), [(1.0, True), (2.0, False)])
def test_writing_uses_compiled_code_that_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, factor: float, used: bool
) -> None:
    calls: list[int] = []

    def fake_compile(function: Any, **_: Any) -> Any:
        def run(images: Tensor) -> Targets:
            calls.append(len(images))
            return {k: {n: factor * v for n, v in s.items()} for k, s in function(images).items()}

        return run

    monkeypatch.setattr(torch, "compile", fake_compile)
    cache = opened(tmp_path, "float16")
    write_cache(
        cache, teacher(POLY), split().loader(7, train=True), split().view_subset(VIEWS), arrays_for(POLY), compile=True
    )
    assert len(calls) == (1 + 3 * VIEWS if used else 1)
    assert ("differs by 1.0e+00" in caplog.text) is not used
    exact = written_cache(tmp_path / "eager", POLY, dtype="float16")
    (array,) = arrays_for(POLY)
    assert exact.file(array.name).read_bytes() == cache.file(array.name).read_bytes()


def test_the_manifest_names_what_is_cached(tmp_path: Path) -> None:
    cache = written_cache(tmp_path, POLY)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["identity"] == {"version": 1, **IDENTITY}
    (state,) = manifest["arrays"].values()
    assert state["rows"] == cache.rows
    assert len(state["sha256"]) == VIEWS


def test_sizes_of_cifar10_are_those_of_the_design() -> None:
    images, views, half = 50_000, 162, 2
    values: dict[str, Tensor | int] = {"162.0 MB": 10, "1.0 GB": 64, "33.7 GB": 2080}
    assert [readable_bytes(images * views * half * int(v)) for v in values.values()] == list(values)
    assert readable_bytes(images * 16 * half * 2080) == "3.3 GB"


class Constant(AT):
    """AT with attention maps of one value, which overflows float16 or is not finite."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def target(self, teacher_feature: Tensor, student_shape: Any = None) -> dict[str, Tensor]:
        target = super().target(teacher_feature, student_shape)
        return {name: torch.full_like(attention, self.value) for name, attention in target.items()}


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (7e4, "float16", r"loss\.mine: .*values up to 7e\+04, more than float16 can hold \(65,504\); use knowledge\.dtype=float32"),
        (float("nan"), "float16", r"loss\.mine: .*not finite.* check teacher\.weights"),
        (float("inf"), "float32", r"loss\.mine: .*not finite.* check teacher\.weights"),
    ],
)  # fmt: skip
def test_a_summary_that_the_cache_cannot_hold_is_refused(
    tmp_path: Path, value: float, dtype: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        written_cache(tmp_path, spec("mine:0", Constant(value)), dtype=dtype)
    assert opened(tmp_path, dtype).written(arrays_for(spec("mine:0", Constant(value)))[0].name) == 0


def test_large_values_fit_a_float32_cache(tmp_path: Path) -> None:
    mine = spec("mine:0", Constant(7e4))
    assert not written_cache(tmp_path, mine).missing(arrays_for(mine))
