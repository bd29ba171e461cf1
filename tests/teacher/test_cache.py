"""A teacher cache returns the teacher's targets, continues interrupted writing, finds damage, and refuses what it is not of."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nst.data.batch import Batch
from nst.data.memory import MemorySplit, ViewScheme
from nst.dist import Dist
from nst.distiller import Targets, TargetSpec
from nst.layers import LOGITS, resolve
from nst.losses import AT, KD, NST, FitNet, Shape, TransferLoss
from nst.models import resnet8
from nst.teacher import CachedTeacher, LiveTeacher, TeacherCache, cached_arrays, why_live, write_cache
from nst.teacher.cache import CachedArray

IMAGES, VIEWS = 21, 4
KEY = {"teacher": {"name": "resnet8", "sha256": "abc"}, "views": VIEWS, "dtype": "float32"}
ONE = Dist(0, 1, torch.device("cpu"))


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


def arrays_for(*target_specs: TargetSpec) -> list[CachedArray]:
    model = resnet8()
    return [array for s in target_specs for array in cached_arrays(s, resolve(model, s.layer), s.student_shape)]


def opened(folder: Path, dtype: str = "float32", **key: Any) -> TeacherCache:
    return TeacherCache(folder, {**KEY, **key}, IMAGES, VIEWS, dtype)


def written_cache(folder: Path, *specs: TargetSpec, live: Any = None, dtype: str = "float32") -> TeacherCache:
    cache, loader = opened(folder, dtype), split().loader(8, train=True)
    write_cache(cache, live or teacher(*specs), loader, split().view_subset(VIEWS), arrays_for(*specs), ONE)
    return cache


def reader(cache: TeacherCache, *target_specs: TargetSpec) -> CachedTeacher:
    return CachedTeacher(cache, arrays_for(*target_specs), split().view_subset(VIEWS), ONE.device)


def some_batch(indices: list[int], slots: list[int]) -> Batch:
    subset, i = split().view_subset(VIEWS).long(), torch.tensor(indices)
    views = subset[i, torch.tensor(slots)]
    return Batch(split().render(i, views), torch.zeros(len(i), dtype=torch.long), i, views)


BATCH = some_batch([20, 3, 3, 0, 11, 7], [0, 1, 3, 2, 3, 0])


def test_cached_targets_equal_the_live_teachers_bit_for_bit(tmp_path: Path) -> None:
    """In batches of a size at which the CPU's kernels treat an image as in those that the cache was written in."""
    specs = (SOFT, POLY, MAP)
    cached = reader(written_cache(tmp_path, *specs), *specs)
    torch.testing.assert_close(cached(BATCH), teacher(*specs)(BATCH), rtol=0, atol=0)
    batches = [some_batch([i, 2, 5, 8, 13, 17], [0, 1, 2, 3, 0, 1]) for i in range(7)]  # more than are read ahead
    given = {"own": {"value": torch.ones(6)}}
    for batch, (yielded, targets) in zip(batches, cached.add_targets((b, given) for b in batches), strict=True):
        assert yielded is batch
        torch.testing.assert_close(targets, given | teacher(*specs)(batch), rtol=0, atol=0)


class CutOff(LiveTeacher):
    """Fails in its 8th batch."""

    calls = 0

    def __call__(self, batch: Batch) -> Targets:
        self.calls += 1
        if self.calls == 8:
            raise KeyboardInterrupt
        return super().__call__(batch)


def test_a_half_written_cache_is_continued(tmp_path: Path) -> None:
    """Also after a power cut, of which a row's values are lost."""
    torch.manual_seed(0)
    live = CutOff(resnet8(), [POLY])
    with pytest.raises(KeyboardInterrupt):
        written_cache(tmp_path, POLY, live=live)
    (array,) = arrays_for(POLY)
    written = np.load(opened(tmp_path).file(array.name, ".part"), mmap_mode="r+")
    assert np.count_nonzero(written["crc"]) == 8 * 7
    written["value"][0, 3] = 0
    continued = written_cache(tmp_path, POLY, live=live)
    assert live.calls == 11 + 2  # of 84 rows in batches of 8, one again
    complete = written_cache(tmp_path / "whole", POLY)
    for file in ("gram.npy", "manifest.json"):
        [one], [other] = continued.folder.glob(f"*{file}"), complete.folder.glob(f"*{file}")
        assert one.read_bytes() == other.read_bytes()


def test_a_loss_added_later_writes_its_own_arrays_only(tmp_path: Path) -> None:
    (logits,) = arrays_for(SOFT)
    before = written_cache(tmp_path, SOFT).file(logits.name).stat()
    both = written_cache(tmp_path, SOFT, MAP)
    assert both.missing(arrays_for(SOFT, MAP)) == []
    assert both.file(logits.name).stat() == before


def test_losses_with_one_target_share_it() -> None:
    def name(loss: TransferLoss, layer: str = "last") -> str:
        return arrays_for(spec("x:0", loss, layer))[0].name

    assert name(NST()) == name(NST(degree=2, c=1.0), "layer3")
    assert len({name(loss) for loss in (AT(), AT(p=1), NST(), NST(convention="official"))}) == 4


class Half(AT):
    """Another target than that of the loss whose `target_key` it inherits."""

    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        return super().target(teacher_feature[:, ::2], student_shape)


def test_what_stays_live_and_why() -> None:
    for loss, large, reason in (
        (AT(), False, "None"), (FitNet(), False, "256; cache.large=true"), (FitNet(), True, "None"), (Half(), True, "target_key"),
    ):  # fmt: skip
        assert reason in str(why_live(spec("x:0", loss), (64, 2, 2), large))


def test_damage_and_another_key_are_refused(tmp_path: Path) -> None:
    cache = written_cache(tmp_path, SOFT)
    with pytest.raises(ValueError, match=r"teacher\.sha256: 'abc' there, 'xyz' now"):
        opened(tmp_path, teacher={"name": "resnet8", "sha256": "xyz"})
    file = cache.file(arrays_for(SOFT)[0].name)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # in the last view of the last image
    file.write_bytes(content)
    damaged = reader(opened(tmp_path), SOFT)
    damaged(some_batch([20], [2]))
    for find in (lambda: damaged(some_batch([20], [3])), opened(tmp_path).check):
        with pytest.raises(ValueError, match=r"logits\.npy is damaged"):
            find()
    file.write_bytes(content[:-8])
    with pytest.raises(ValueError, match=r"logits\.npy is damaged"):
        opened(tmp_path)
    file.unlink()
    assert not written_cache(tmp_path, SOFT).missing(arrays_for(SOFT))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("value", "dtype", "hint"),
    [(7e4, "float16", r"cache\.dtype=float32"), (7e4, "float32", ""), (torch.nan, "float32", r"teacher\.weights")],
)
def test_a_target_that_the_cache_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, dtype: str, hint: str
) -> None:
    mine = spec("mine:0", AT())
    monkeypatch.setattr(mine.loss, "target", lambda f, shape: {"attention": torch.full((len(f), 4), value)})
    with pytest.raises(ValueError, match=rf"loss\.mine: .*{dtype}.*{hint}") if hint else nullcontext():
        written_cache(tmp_path, mine, dtype=dtype)
    assert bool(opened(tmp_path, dtype).arrays) == (not hint)
