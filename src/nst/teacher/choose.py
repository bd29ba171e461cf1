"""Which of a run's summaries are read from the cache, and which the live teacher computes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from nst.distiller import Request
from nst.losses import Shape
from nst.taps import resolve
from nst.teacher.cache import TeacherCache
from nst.teacher.cached import choose_residence
from nst.teacher.cost import Cost, free_space, read_seconds
from nst.teacher.layout import Array, arrays, kept_live, large


@dataclass(frozen=True)
class Choice:
    """What is decided for the requests of a run."""

    live: dict[str, str]  # key → why the live teacher computes it
    by_cost: dict[str, str] = field(
        default_factory=dict
    )  # key → the figures, where reading was weighed against computing


def choose_summaries(
    cache: TeacherCache,
    teacher: nn.Module,
    requests: Sequence[Request],
    shapes: Mapping[str, Shape],
    allow_large: bool | None,
    compute: Callable[[Sequence[Request]], float] | None = None,
    *,
    device: torch.device,
    ranks: int = 1,
    residence: str = "auto",
) -> Choice | None:
    """Decide what is cached.

    Summaries smaller than the feature are cached. Those as large as the feature are cached with `allow_large=True`, live with
    False. With None they are cached together if reading them is cheaper than computing them and the disk has the space: weighed
    once for a cache, then read from its manifest, so that a run that continues keeps its choice.

    Args:
        shapes: of one image's feature, by tap of the teacher.
        compute: seconds an image of the teacher's forward pass for some requests. The cache must be locked then; the
            choice is saved in it.
        residence: where the arrays will be read from, as in `CachedTeacher`.

    Returns:
        None where something is not decided yet and `compute` is not given.
    """
    if allow_large is not None:
        return Choice(kept_live(requests, shapes, allow_large))
    uncachable = kept_live(requests, shapes, allow_large=True)
    candidates = [r for r in large(requests, shapes) if r.key not in uncachable]
    names = {r.key: [a.name for a in arrays_of([r], teacher, shapes)] for r in candidates}
    undecided = [r for r in candidates if not _decided(cache, names[r.key])]
    if undecided and compute is None:
        return None
    if undecided and compute is not None:
        rest = [r for r in requests if r.key not in uncachable and r not in undecided]
        cost = weigh(
            arrays_of(undecided, teacher, shapes), arrays_of(rest, teacher, shapes), cache, compute(undecided),
            device=device, ranks=ranks, residence=residence,
        )  # fmt: skip
        cache.choose([name for r in undecided for name in names[r.key]], cost.cheaper_to_read, str(cost))
    noted = {key: cache.choices[found[0]] for key, found in names.items() if found[0] in cache.choices}
    live = {key: choice["why"] for key, choice in noted.items() if not choice["cached"]}
    return Choice(uncachable | live, {key: choice["why"] for key, choice in noted.items()})


def arrays_of(requests: Sequence[Request], teacher: nn.Module, shapes: Mapping[str, Shape]) -> list[Array]:
    """The arrays of these requests, each name once."""
    found = [a for r in requests for a in arrays(r, resolve(teacher, r.tap), shapes[r.tap])]
    return list({a.name: a for a in found}.values())


def _decided(cache: TeacherCache, names: Sequence[str]) -> bool:
    """Whether the manifest says what to do with these arrays, or they have been written already (with `allow_large=True`, say)."""
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
    """What reading and computing these arrays cost.

    Args:
        rest: what is cached besides, and takes memory and disk, too.
        computing: seconds an image.
    """
    new = sum(cache.bytes(a.shape) for a in weighed)
    if residence == "auto":
        residence = choose_residence(new + sum(cache.bytes(a.shape) for a in rest), device, ranks)
    needed = new + sum(cache.bytes(a.shape) for a in rest if a.name not in cache.state)
    row = new // cache.rows
    return Cost(row, read_seconds(row, residence, ranks), computing, needed, free_space(cache.folder))
