"""The teacher's part of a run: its weights, its accuracy, and where its summaries come from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from nst import build
from nst.config import (
    NOT_IDENTITY,
    EvaluateConfig,
    KnowledgeConfig,
    RunConfig,
    TeacherConfig,
    TeacherRecipeConfig,
    TrainerConfig,
)
from nst.data.dataset import Dataset
from nst.data.progress import counted
from nst.errors import Interrupted
from nst.files import sha256_of
from nst.models.weights import load_weights
from nst.runs.folder import not_default
from nst.taps import resolve
from nst.teacher import (
    Array,
    CachedTeacher,
    LiveTeacher,
    MixedSource,
    Normalization,
    NoTeacher,
    SummarySource,
    TeacherCache,
    arrays,
    describe_sizes,
    fold_batch_norm,
    kept_live,
    write_cache,
)
from nst.teacher.cache import MANIFEST
from nst.training.evaluate import evaluate
from nst.training.ranks import Ranks
from nst.training.signals import StopFlag, stop_flag


@dataclass(frozen=True)
class TeacherSide:
    """The teacher's side of a run."""

    source: SummarySource
    about: dict[str, Any] | None = None  # the teacher, for the summary
    live: LiveTeacher | None = None  # the teacher where it was loaded
    views: Tensor | None = None  # [images, K]: the views that epochs show; None: all
    cache: TeacherCache | None = None


def cache_stands_in(settings: RunConfig) -> bool:
    """Whether `knowledge.path` names an existing cache, which may make the teacher's weights unnecessary."""
    path = settings.knowledge.path
    return path is not None and (Path(path) / MANIFEST).is_file()


def teacher_side(
    settings: RunConfig, networks: build.Networks, here: Ranks, data: Dataset, weights: str | None
) -> TeacherSide:
    """The source of the summaries that the terms need: live, or from a cache that is completed first.

    Args:
        weights: the teacher's file; None without a teacher, or if a named cache replaces it.

    Raises:
        ValueError: missing or wrong weights, a teacher below its minimum accuracy, a cache that does not match or is too large.
    """
    if networks.teacher is None:
        return TeacherSide(NoTeacher())
    if settings.knowledge.mode == "stored":
        return _cached(settings, networks, here, data, weights)
    assert weights is not None
    live, about = load_teacher(settings, networks, here, data, weights)
    live.ask(networks.distiller.requests)
    if settings.teacher.batch_statistics:
        live.use_batch_statistics()
    return TeacherSide(live, about, live)


def _cached(
    settings: RunConfig, networks: build.Networks, here: Ranks, data: Dataset, weights: str | None
) -> TeacherSide:
    requests = networks.distiller.requests
    every = data.train.num_views
    views = _cached_views(settings.knowledge, data.name, every)
    reasons = kept_live(requests, networks.teacher_shapes, settings.knowledge.allow_large)
    wanted = _wanted(networks, reasons)
    identity = cache_identity(settings, data, sha256_of(weights) if weights else _sha256_in(settings), views)
    cache = TeacherCache(cache_folder(settings, identity), identity, len(data.train), views, settings.knowledge.dtype)
    subset = data.train.view_subset(views)
    live, about = None, cache.teacher
    (incomplete,) = here.max(int(bool(cache.missing(wanted))))
    if here.main:
        print(_plan(cache, wanted, reasons, every, settings.trainer.epochs), flush=True)
    if incomplete or reasons:
        if weights is None:
            raise ValueError(
                f"the teacher cache {cache.folder} does not have all summaries of this run, so the teacher itself is needed: "
                "name its teacher.weights"
            )
        live, about = load_teacher(settings, networks, here, data, weights)
    if incomplete and live is not None:
        live.ask([r for r in requests if r.key not in reasons])
        _write(settings, cache, live, about, here, data, subset, wanted)
    if live is None and about is not None:
        check_accuracy(settings, data, about)
    cached = CachedTeacher(cache, wanted, subset, here.device, here.world, settings.knowledge.residence)
    shown = None if views == every else subset
    if live is None or not reasons:
        return TeacherSide(cached, about, live, shown, cache)
    live.ask([r for r in requests if r.key in reasons])
    return TeacherSide(MixedSource(cached, live), about, live, shown, cache)


def _cached_views(knowledge: KnowledgeConfig, name: str, every: int | None) -> int:
    """How many of `every` view of an image to cache (None: they cannot be enumerated; then `all` raises ValueError)."""
    if every is None and knowledge.views == "all":
        raise ValueError(
            f"knowledge.views=all: the views of data={name} are random-sized crops, which cannot be enumerated; choose a number of "
            "them, such as knowledge.views=16, or use knowledge=live"
        )
    if every is None:
        return int(knowledge.views)
    return every if knowledge.views == "all" else min(int(knowledge.views), every)


def _wanted(networks: build.Networks, reasons: dict[str, str]) -> list[Array]:
    """The arrays of the requests that a cache serves. Raises ValueError if there are none."""
    requests, teacher = networks.distiller.requests, networks.teacher
    assert teacher is not None
    if len(reasons) == len(requests):
        found = "; ".join(f"loss.{key.split(':')[0]}: {reason}" for key, reason in reasons.items())
        raise ValueError(f"knowledge=stored has nothing to cache. {found}. Use knowledge=live")
    return [
        array
        for r in requests
        if r.key not in reasons
        for array in arrays(r, resolve(teacher, r.tap), networks.teacher_shapes[r.tap])
    ]


def _sha256_in(settings: RunConfig) -> str:
    file = Path(settings.knowledge.path or "") / MANIFEST
    try:
        return json.loads(file.read_text())["identity"]["teacher"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete the folder to have it built again") from error


def cache_identity(settings: RunConfig, data: Dataset, sha256: str, views: int) -> dict[str, Any]:
    """The identity of a cache. Fields that equal the first version's behaviour are omitted, so that its caches stay valid."""
    precision = settings.teacher.precision
    later: dict[str, Any] = {} if precision == "fp32" else {"precision": precision}
    if own := not_default(settings.teacher.model, ("name", "num_classes", "in_channels")):
        later["teacher_arguments"] = own  # such as an ε, which no weight shows
    return {
        "teacher": {"name": settings.teacher.model["name"], "sha256": sha256},
        "data": {"name": data.name, "sha256": data.train.fingerprint, "mean": list(data.mean), "std": list(data.std)},
        "teacher_input": {"mean": settings.teacher.mean, "std": settings.teacher.std},
        "view_scheme": data.train.view_key,
        "views": views,
        "dtype": settings.knowledge.dtype,
        **later,
    }


def cache_folder(settings: RunConfig, identity: dict[str, Any]) -> Path:
    """`outputs/<data>/knowledge/<teacher>-<hash>`, or the user's `knowledge.path`."""
    if settings.knowledge.path is not None:
        return Path(settings.knowledge.path)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return Path(settings.outputs) / identity["data"]["name"] / "knowledge" / f"{identity['teacher']['name']}-{digest}"


def _plan(cache: TeacherCache, wanted: Sequence[Array], reasons: dict[str, str], every: int | None, epochs: int) -> str:
    lines = [describe_sizes(cache, wanted)]
    if every is None or cache.views < every:
        rest = "new random ones" if every is None else f"random ones of all {every}"
        lines.append(f"epochs show each image's {cache.views} cached views in turn, not {rest}")
        if cache.views < epochs:
            enough = epochs if every is None else min(epochs, every)
            lines[-1] += f"; that can cost accuracy; knowledge.views={enough} would repeat none"
    lines += [f"loss.{key.split(':')[0]} uses a live teacher: {reason}" for key, reason in reasons.items()]
    return "\n".join(lines)


def _write(
    settings: RunConfig,
    cache: TeacherCache,
    live: LiveTeacher,
    about: dict[str, Any] | None,
    here: Ranks,
    data: Dataset,
    subset: Tensor,
    wanted: Sequence[Array],
) -> None:
    """Rank 0 writes the cache, the others wait; a signal to any of them stops all."""
    compile = settings.trainer.compile
    with stop_flag() as flag:
        stop = StopTogether(flag, here)
        if here.main:
            cache.teacher = about
            loader = build.loader(settings, Ranks(0, 1, here.device), data, "train")
            write_cache(
                cache, live, loader, subset, wanted, here.device.type == "cuda" if compile is None else compile, stop
            )
            stop.check(done=True)
        else:
            stop.wait()
            cache.reload()


@dataclass(frozen=True)
class StopTogether:
    """While rank 0 works and the others wait: a stop signal to any of them stops all, after saving."""

    flag: StopFlag
    ranks: Ranks

    def asked(self) -> bool:
        """Whether this rank was."""
        return bool(self.flag.signum)

    def check(self, done: bool = False) -> bool:
        """Synchronise the ranks, with whether rank 0 is done. Raises Interrupted."""
        signum, finished = self.ranks.max(self.flag.signum, int(done))
        if signum:
            raise Interrupted(signum)
        return bool(finished)

    def wait(self) -> None:
        """Return when rank 0 is done. Raises Interrupted."""
        while not self.check():
            pass


def load_teacher(
    settings: RunConfig, networks: build.Networks, here: Ranks, data: Dataset, weights: str
) -> tuple[LiveTeacher, dict[str, Any]]:
    """The teacher with its weights, batch norms folded, and its metadata; its accuracy is measured here.

    Raises:
        ValueError: weights of another architecture, or an accuracy below the minimum (by default: near chance).
    """
    teacher, images = networks.teacher, Normalization(data.mean, data.std)
    assert teacher is not None
    metadata = load_weights(teacher, weights)
    parameters = build.count_parameters(teacher)
    expects = expected_normalization(settings.teacher, metadata) or images
    teacher.to(here.device)
    if settings.trainer.channels_last:
        teacher.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    first = torch.arange(min(8, len(data.test)), device=here.device)
    probe = data.test.render(first, torch.full_like(first, data.test.identity))
    teacher.eval()
    if not settings.teacher.batch_statistics:
        fold_batch_norm(teacher, probe, [resolve(teacher, r.tap) for r in networks.distiller.requests])
    live = LiveTeacher(teacher, (), images=images, expects=expects, precision=settings.teacher.precision)
    split = "val" if data.val is not None else "test"
    total = len(data.split(split)) // here.world
    what = f"evaluating the teacher {settings.teacher.model['name']} on {total:,} images"
    batches = counted(build.loader(settings, here, data, split).epoch(0), what, total)
    metrics = evaluate(TeacherOutput(live).eval(), batches, here)
    if here.main:
        print(f"teacher {settings.teacher.model['name']}: top-1 {metrics.top1:.2f} % on the {split} images ({weights})")
    about = {
        "name": settings.teacher.model["name"],
        "weights": weights,
        "sha256": sha256_of(weights),
        "parameters": parameters,
        "evaluated_on": split,
        **asdict(metrics),
    }
    check_accuracy(settings, data, about)
    return live, about


def check_accuracy(settings: RunConfig, data: Dataset, about: dict[str, Any]) -> None:
    """Raises ValueError for a teacher below `teacher.min_accuracy`; by default for one that is not better than chance.

    Chance is predicting the most frequent class; the test is a one-sided binomial test at the 1 % level.
    """
    floor, top1, where = settings.teacher.min_accuracy, about["top1"], about["evaluated_on"]
    if floor is not None:
        reason = f"teacher.min_accuracy={floor} is required" if top1 < floor else None
    else:
        labels = data.split(where).labels
        chance = float(torch.bincount(labels).max() / len(labels))
        hits = round(top1 * len(labels) / 100)
        reason = None
        if binomtest(hits, len(labels), chance, alternative="greater").pvalue > 0.01:
            reason = f"predicting the most frequent class gives {100 * chance:.2f} %, so it may be at chance: "
            if settings.teacher.weights is None and settings.knowledge.path is None:
                reason += "trained here, by teacher.recipe: more epochs (teacher.recipe.trainer.epochs), or another learning rate?"
            else:
                reason += "wrong weights, classes in another order, or another normalisation (teacher.mean, .std)?"
    if reason is not None:
        raise ValueError(
            f"the teacher ({about['weights']}) scores {top1:.2f} % on the {where} images; {reason} "
            "teacher.min_accuracy=0 accepts any teacher"
        )


def teacher_run(settings: RunConfig) -> RunConfig:
    """The run that trains the teacher: its own recipe and seed, independent of the student's.

    From the student's trainer it takes only keys that do not change the result.
    """
    recipe = settings.teacher.recipe
    shared = [key.removeprefix("trainer.") for key in NOT_IDENTITY if key.startswith("trainer.")]
    trainer = replace(
        TrainerConfig(**{key: getattr(settings.trainer, key) for key in shared}),
        **asdict(recipe.trainer),
        prune_after=None,
        profile=False,
    )
    ce = {"weight": 1.0, "_target_": "nst.losses.CrossEntropy"}
    return replace(
        settings,
        model=settings.teacher.model,
        teacher=TeacherConfig(recipe=TeacherRecipeConfig(), seed=0),
        knowledge=KnowledgeConfig(),
        loss={"ce": ce},
        optim=recipe.optim,
        schedule=recipe.schedule,
        trainer=trainer,
        seed=settings.teacher.seed,
    )


def expected_normalization(teacher: TeacherConfig | EvaluateConfig, metadata: dict[str, str]) -> Normalization | None:
    """What the weights were trained on: as configured, else as stored with them, else unknown."""
    stored = {key: [float(v) for v in metadata[key].split(",")] for key in ("mean", "std") if key in metadata}
    mean, std = teacher.mean or stored.get("mean"), teacher.std or stored.get("std")
    return Normalization(tuple(mean), tuple(std)) if mean and std else None


class TeacherOutput(nn.Module):
    """A teacher as a plain module from the student's images to logits, for evaluation."""

    def __init__(self, live: LiveTeacher) -> None:
        super().__init__()
        self.live = live

    def forward(self, images: Any) -> Any:
        logits = self.live.logits(images)
        self.live.taps.read()
        return logits
