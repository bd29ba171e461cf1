"""Which of a run's targets are read from the cache, and which the live teacher computes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from nst.distiller import TargetSpec
from nst.layers import resolve
from nst.losses import Shape
from nst.teacher.cache import TeacherCache
from nst.teacher.cached import choose_residence
from nst.teacher.cost import Cost, free_space, read_seconds
from nst.teacher.layout import Array, arrays, kept_live, large


@dataclass(frozen=True)
class Choice:
    """Which target_specs of a run are computed live, and which decisions were made by cost."""

    live: dict[str, str]  # key → why the live teacher computes it
    by_cost: dict[str, str] = field(default_factory=dict)  # key → both costs, if reading was compared with computing


def choose_targets(
    cache: TeacherCache,
    teacher: nn.Module,
    target_specs: Sequence[TargetSpec],
    shapes: Mapping[str, Shape],
    allow_large: bool | None,
    compute: Callable[[Sequence[TargetSpec]], float] | None = None,
    *,
    device: torch.device,
    ranks: int = 1,
    residence: str = "auto",
) -> Choice | None:
    """Decide what is cached.

    Targets smaller than the feature are cached. Those as large as the feature are cached with `allow_large=True`, live with
    False. With None they are cached together if reading them is cheaper than computing them and the disk has the space. That is
    measured once for a cache, then read from its manifest, so that a continued run keeps its choice.

    Args:
        shapes: of one image's feature, by layer of the teacher.
        compute: measures the seconds an image of the teacher's forward pass for some target_specs. The cache must be locked then;
            the choice is saved in it.
        residence: where the arrays will be kept, as in `CachedTeacher`.

    Returns:
        None if something is undecided and `compute` is not given.
    """
    if allow_large is not None:
        return Choice(kept_live(target_specs, shapes, allow_large))
    uncachable = kept_live(target_specs, shapes, allow_large=True)
    candidates = [r for r in large(target_specs, shapes) if r.key not in uncachable]
    names = {r.key: [a.name for a in arrays_of([r], teacher, shapes)] for r in candidates}
    undecided = [r for r in candidates if not _decided(cache, names[r.key])]
    if undecided and compute is None:
        return None
    if undecided and compute is not None:
        others = [r for r in target_specs if r.key not in uncachable and r not in undecided]
        cost = weigh(
            arrays_of(undecided, teacher, shapes), arrays_of(others, teacher, shapes), cache, compute(undecided),
            device=device, ranks=ranks, residence=residence,
        )  # fmt: skip
        cache.choose([name for r in undecided for name in names[r.key]], cost.cheaper_to_read, str(cost))
    choices = {
        key: cache.choices[array_names[0]] for key, array_names in names.items() if array_names[0] in cache.choices
    }
    live = {key: choice["why"] for key, choice in choices.items() if not choice["cached"]}
    return Choice(uncachable | live, {key: choice["why"] for key, choice in choices.items()})


def arrays_of(target_specs: Sequence[TargetSpec], teacher: nn.Module, shapes: Mapping[str, Shape]) -> list[Array]:
    """The arrays of these target_specs, each name once."""
    result = [a for r in target_specs for a in arrays(r, resolve(teacher, r.layer), shapes[r.layer])]
    return list({a.name: a for a in result}.values())


def _decided(cache: TeacherCache, names: Sequence[str]) -> bool:
    """Whether the manifest has a choice for these arrays, or they exist already (written with `allow_large=True`, say)."""
    return all(name in cache.choices for name in names) or all(name in cache.state for name in names)


def weigh(
    weighed: Sequence[Array],
    rest: Sequence[Array],
    cache: TeacherCache,
    computing: float,
    *,
    device: torch.device,
    ranks: int,
    residence: str,
) -> Cost:
    """The costs of reading and of computing these arrays.

    Args:
        rest: the other cached arrays, which need memory and disk space, too.
        computing: seconds an image.
    """
    new = sum(cache.bytes(a.shape) for a in weighed)
    if residence == "auto":
        residence = choose_residence(new + sum(cache.bytes(a.shape) for a in rest), device, ranks)
    needed = new + sum(cache.bytes(a.shape) for a in rest if a.name not in cache.state)
    row = new // cache.rows
    return Cost(row, read_seconds(row, residence, ranks), computing, needed, free_space(cache.folder))
