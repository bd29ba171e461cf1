"""A run's teacher cache: its identity, its folder, its writing."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nst import build
from nst.config import CacheConfig, RunConfig
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.files import sha256_of
from nst.layers import resolve
from nst.runs.folder import not_default
from nst.runs.teacher import TeacherSide, check_accuracy, evaluate_teacher, load_teacher
from nst.signals import Interrupted, StopFlag, stop_flag
from nst.teacher import (
    Array,
    CachedTeacher,
    Choice,
    LiveTeacher,
    MixedSource,
    NoTeacher,
    TeacherCache,
    arrays,
    check_rows,
    choose_targets,
    compute_seconds,
    describe_sizes,
    locked_together,
    write_cache,
)
from nst.teacher.cache import MANIFEST

CHECKED_IMAGES = 8  # of which a cache is compared with its teacher at each start


def cache_replaces_weights(settings: RunConfig) -> bool:
    """Whether `cache.path` names an existing cache, so that the teacher's weights may not be needed."""
    path = settings.cache.path
    return path is not None and (Path(path) / MANIFEST).is_file()


def teacher_side(
    settings: RunConfig, networks: build.Networks, ranks: Dist, data: Dataset, weights: str | None
) -> TeacherSide:
    """The source of the targets that the terms need: a live teacher, or a cache that is completed first.

    Args:
        weights: the teacher's file; None without a teacher, or if a named cache replaces it.

    Raises:
        ValueError: missing or wrong weights, a teacher below its minimum accuracy, a cache that does not match or is too large.
    """
    if networks.teacher is None:
        return TeacherSide(NoTeacher())
    if settings.cache.views:
        return _cached(settings, networks, ranks, data, weights)
    assert weights is not None
    live, about = load_teacher(settings, networks, ranks, data, weights)
    about = evaluate_teacher(settings, live, about, ranks, data)
    live.set_target_specs(networks.distiller.target_specs)
    if settings.teacher.batch_statistics:
        live.use_batch_statistics()
    return TeacherSide(live, about, live)


def _cached(
    settings: RunConfig, networks: build.Networks, ranks: Dist, data: Dataset, weights: str | None
) -> TeacherSide:
    target_specs = networks.distiller.target_specs
    num_views = data.train.num_views
    views = _cached_views(settings.cache, data.name, num_views)
    identity = cache_identity(settings, data, sha256_of(weights) if weights else cached_teacher_sha256(settings), views)
    cache = TeacherCache(cache_folder(settings, identity), identity, len(data.train), views, settings.cache.dtype)
    choice = _choose(settings, networks, ranks, cache)
    needed = _needed(networks, choice, settings.cache)
    subset = data.train.view_subset(views)
    (incomplete,) = ranks.max(int(bool(cache.missing(needed))))
    if ranks.main:
        print(_plan(cache, needed, choice, num_views, settings.trainer.epochs), flush=True)
    live, facts = (None, {}) if weights is None else load_teacher(settings, networks, ranks, data, weights)
    if live is not None:
        live.set_target_specs([r for r in target_specs if r.key not in choice.live])
        check_rows(cache, live, _first_images(settings, data, subset, ranks.device), needed)
    elif incomplete or choice.live:
        raise ValueError(
            f"the teacher cache {cache.folder} does not have all targets of this run, so the teacher itself is needed: "
            "name its teacher.weights"
        )
    about = cache.teacher
    if live is not None and (incomplete or choice.live):
        about = evaluate_teacher(settings, live, facts, ranks, data)
    elif about is not None:
        check_accuracy(settings, data, about)
    if incomplete and live is not None:
        _write(settings, cache, live, about, ranks, data, subset, needed)
    train_views = None if views == num_views else subset
    if not needed:
        assert live is not None
        live.set_target_specs(target_specs)
        return TeacherSide(live, about, live, train_views, cache)
    cached = CachedTeacher(cache, needed, subset, ranks.device, ranks.world, "auto")
    if live is None or not choice.live:
        return TeacherSide(cached, about, live, train_views, cache)
    live.set_target_specs([r for r in target_specs if r.key in choice.live])
    return TeacherSide(MixedSource(cached, live), about, live, train_views, cache)


def _first_images(settings: RunConfig, data: Dataset, subset: Tensor, device: torch.device) -> Tensor:
    """[B, C, H, W]: the first training images in their first cached view."""
    indices = torch.arange(min(CHECKED_IMAGES, len(data.train)), device=device)
    views = subset[: len(indices), 0].long().to(device)
    return data.train.render(indices, views, settings.trainer.channels_last)


def _cached_views(cache: CacheConfig, name: str, num_views: int | None) -> int:
    """How many of an image's `num_views` views to cache (None: they cannot be enumerated, so `all` raises ValueError)."""
    if num_views is None and cache.views == "all":
        raise ValueError(
            f"cache.views=all: the views of data={name} are random-sized crops, which cannot be enumerated; choose a number of "
            "them, such as cache.views=16, or use cache.views=0"
        )
    if num_views is None:
        return int(cache.views)
    return num_views if cache.views == "all" else min(int(cache.views), num_views)


def _choose(settings: RunConfig, networks: build.Networks, ranks: Dist, cache: TeacherCache) -> Choice:
    """Which targets are cached, the same on every rank: rank 0 measures and decides once, the manifest stores the decision."""
    teacher = networks.teacher
    assert teacher is not None
    image = (settings.data["channels"], settings.data["size"], settings.data["size"])
    compute = partial(
        compute_seconds, teacher, image=image, batch=settings.trainer.batch_size // ranks.world, device=ranks.device,
        precision=settings.teacher.precision, channels_last=settings.trainer.channels_last,
    )  # fmt: skip
    choose = partial(
        choose_targets, cache, teacher, networks.distiller.target_specs, networks.teacher_shapes, settings.cache.large,
        device=ranks.device, ranks=ranks.world, residence="auto",
    )  # fmt: skip
    (undecided,) = ranks.max(int(choose() is None))
    if undecided:
        with stop_flag() as flag, locked_together(cache, StopTogether(flag, ranks)):
            if ranks.main:
                choose(compute)
        ranks.barrier()
        cache.reload()
    choice = choose()
    assert choice is not None
    return choice


def _needed(networks: build.Networks, choice: Choice, cache: CacheConfig) -> list[Array]:
    """The arrays of the target_specs that are cached. Raises ValueError if none can be."""
    target_specs, teacher = networks.distiller.target_specs, networks.teacher
    assert teacher is not None
    if len(choice.live) == len(target_specs) and (cache.large is False or not choice.by_cost):
        reasons = "; ".join(f"loss.{key.split(':')[0]}: {reason}" for key, reason in choice.live.items())
        raise ValueError(f"cache.views: there is nothing to cache. {reasons}. Use cache.views=0")
    return [
        array
        for r in target_specs
        if r.key not in choice.live
        for array in arrays(r, resolve(teacher, r.layer), networks.teacher_shapes[r.layer])
    ]


def cached_teacher_sha256(settings: RunConfig) -> str:
    """SHA-256 of the weights of the teacher whose cache `cache.path` names. Raises ValueError for a damaged manifest."""
    file = Path(settings.cache.path or "") / MANIFEST
    try:
        return json.loads(file.read_text())["identity"]["teacher"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete the folder to have it built again") from error


def cache_identity(settings: RunConfig, data: Dataset, sha256: str, views: int) -> dict[str, Any]:
    """The identity of a cache. Settings with the behaviour of the first version are omitted, so that its caches stay valid."""
    precision = settings.teacher.precision
    optional: dict[str, Any] = {} if precision == "fp32" else {"precision": precision}
    if arguments := not_default(settings.teacher.model, ("name", "num_classes", "in_channels")):
        optional["teacher_arguments"] = arguments  # such as an ε, which the weights do not contain
    return {
        "teacher": {"name": settings.teacher.model["name"], "sha256": sha256},
        "data": {"name": data.name, "sha256": data.train.fingerprint, "mean": list(data.mean), "std": list(data.std)},
        "teacher_input": {"mean": settings.teacher.mean, "std": settings.teacher.std},
        "view_scheme": data.train.view_key,
        "views": views,
        "dtype": settings.cache.dtype,
        **optional,
    }


def cache_folder(settings: RunConfig, identity: dict[str, Any]) -> Path:
    """`outputs/<data>/cache/<teacher>-<hash>`, or the user's `cache.path`."""
    if settings.cache.path is not None:
        return Path(settings.cache.path)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return Path(settings.outputs) / identity["data"]["name"] / "cache" / f"{identity['teacher']['name']}-{digest}"


def _plan(cache: TeacherCache, needed: Sequence[Array], choice: Choice, num_views: int | None, epochs: int) -> str:
    lines = [describe_sizes(cache, needed)]
    if num_views is None or cache.views < num_views:
        others = "new random ones" if num_views is None else f"random ones of all {num_views}"
        lines.append(f"epochs show each image's {cache.views} cached views in turn, not {others}")
        if cache.views < epochs:
            enough = epochs if num_views is None else min(epochs, num_views)
            lines[-1] += f"; that can cost accuracy; cache.views={enough} would repeat none"
    lines += [
        f"loss.{key.split(':')[0]} is cached: {reason}"
        for key, reason in choice.by_cost.items()
        if key not in choice.live
    ]
    lines += [f"loss.{key.split(':')[0]} uses a live teacher: {reason}" for key, reason in choice.live.items()]
    return "\n".join(dict.fromkeys(lines))


def _write(
    settings: RunConfig,
    cache: TeacherCache,
    live: LiveTeacher,
    about: dict[str, Any] | None,
    ranks: Dist,
    data: Dataset,
    subset: Tensor,
    needed: Sequence[Array],
) -> None:
    """Each rank writes some batches of the cache; a signal to one rank stops all."""
    compile = settings.trainer.compile
    cache.teacher = about
    loader = build.loader(settings, Dist(0, 1, ranks.device), data, "train")
    with stop_flag() as flag:
        write_cache(
            cache, live, loader, subset, needed, ranks.device.type == "cuda" if compile is None else compile,
            StopTogether(flag, ranks),
        )  # fmt: skip


@dataclass(frozen=True)
class StopTogether:
    """The ranks that write a cache together: a stop signal to one of them ends all, after saving. See `nst.teacher.write.Peers`."""

    flag: StopFlag
    ranks: Dist

    @property
    def rank(self) -> int:
        """This process's rank."""
        return self.ranks.rank

    @property
    def world(self) -> int:
        """The number of ranks."""
        return self.ranks.world

    def stop_requested(self) -> bool:
        """Whether this rank has received a stop signal."""
        return bool(self.flag.signum)

    def any(self, mine: bool) -> bool:
        """Whether `mine` is true on any rank."""
        return self.ranks.max(int(mine)) == [1]

    def check(self, done: bool = False) -> bool:
        """Exchange the ranks' stop signals; returns whether rank 0 is done. Raises Interrupted."""
        signum, finished = self.ranks.max(self.flag.signum, int(done))
        if signum:
            raise Interrupted(signum)
        return bool(finished)

    def wait(self) -> None:
        """Return when rank 0 is done. Raises Interrupted."""
        while not self.check():
            pass
