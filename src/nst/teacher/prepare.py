"""The teacher of a run: its weights, its accuracy, and where its targets come from."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import nn

from nst.config import CacheConfig, TeacherConfig, TrainerConfig
from nst.data.dataset import Dataset
from nst.data.progress import counted
from nst.dist import Dist
from nst.distiller import TargetSpec
from nst.evaluate import evaluate
from nst.files import sha256_of, write_whole
from nst.layers import resolve
from nst.losses import Shape
from nst.models.weights import load_weights
from nst.teacher.cache import (
    MANIFEST,
    CachedArray,
    CachedTeacher,
    TeacherCache,
    cached_arrays,
    compare_with_teacher,
    read_manifest,
    readable_bytes,
    why_live,
    write_cache,
)
from nst.teacher.live import LiveTeacher, Normalization, Teacher, fold_batch_norm
from nst.teacher.statistics import init_teacher_statistics

COMPARED_IMAGES = 8  # of which a cache is compared with its teacher at each start


def make_teacher(
    model: nn.Module | None,
    weights: str | None,
    target_specs: Sequence[TargetSpec],
    shapes: Mapping[str, Shape],
    data: Dataset,
    ranks: Dist,
    *,
    name: str,
    arguments: Mapping[str, Any],
    settings: TeacherConfig,
    cache: CacheConfig,
    trainer: TrainerConfig,
    outputs: str,
) -> Teacher:
    """Load and evaluate the teacher; with `cache.views` complete its cache, which may also replace the weights. Collective.

    Args:
        model: the teacher; None: no term needs one.
        weights: its file; None if `cache.path` names a complete cache.
        target_specs: of the student's terms.
        shapes: of one image's feature, by layer of the teacher.
        arguments: of the network, as far as the weights do not contain them (an ε, for example).
        outputs: the folder of all runs.

    Raises:
        ValueError: wrong weights, a teacher below its minimum accuracy, a cache that does not fit, is damaged or too large.
    """
    if model is None:
        return Teacher()
    folder = Path(outputs) / data.name
    live, expects = None, expected_normalization(settings.mean, settings.std, {})
    if weights is not None:
        metadata = load_weights(model, weights, settings.weights_key)
        expects = expected_normalization(settings.mean, settings.std, metadata)
        about = {"name": name, "weights": weights, "parameters": sum(p.numel() for p in model.parameters())}
        about["sha256"] = sha256_of(weights)
        live = _live(model, _layers(target_specs), data, ranks, settings, expects, trainer.channels_last)
    else:
        about = {"sha256": cached_teacher_sha256(cache.path)}
    of: dict[str, Any] = {
        "teacher": {
            "name": name,
            "sha256": about["sha256"],
            "arguments": dict(arguments),
            "precision": settings.precision,
        },
        "data": {"name": data.name, "mean": list(data.mean), "std": list(data.std)},
        "teacher_input": {"mean": settings.mean, "std": settings.std},
    }
    if not cache.views:
        assert live is not None
        about = _with_accuracy(live, about, of, data, ranks, trainer, folder / "teachers")
        check_accuracy(about, data, settings, trained_here=settings.weights is None)
        init_teacher_statistics(target_specs, live, of, data, ranks, trainer, folder / "teachers")
        live.set_target_specs(target_specs)
        if settings.batch_statistics:
            live.use_batch_statistics()
        return Teacher((live,), about, live)
    views = count_views(cache.views, data.train.num_views, data.name)
    of_cache = of | {"dtype": cache.dtype, "views": {"scheme": data.train.view_key, "number": views}}
    of_cache["data"] = of["data"] | {"sha256": data.train.fingerprint}
    place = Path(cache.path) if cache.path else folder / "cache" / f"{name}-{_digest(of_cache)}"
    store = TeacherCache(place, of_cache, len(data.train), views, cache.dtype)
    layers = {spec.layer: resolve(model, spec.layer) for spec in target_specs}
    cached, arrays, report = plan_cache(store, target_specs, layers, shapes, cache.large)
    (incomplete,) = ranks.max(int(bool(store.missing(arrays))))
    if ranks.main:
        print(f"{report}\n{_views_shown(views, data.train.num_views, trainer.epochs)}".strip(), flush=True)
    if live is None and (incomplete or len(cached) < len(target_specs)):
        raise ValueError(
            f"the teacher cache {place} does not have all targets of this run, so the teacher itself is needed: "
            "name its teacher.weights"
        )
    subset = data.train.view_subset(views)
    if live is None or (store.teacher is not None and not incomplete):
        about = store.teacher or about
    else:
        about = _with_accuracy(live, about, of, data, ranks, trainer, folder / "teachers")
    check_accuracy(about, data, settings, trained_here=settings.weights is None and cache.path is None)
    init_teacher_statistics(target_specs, live, of, data, ranks, trainer, place)
    if live is not None and arrays:
        live.set_target_specs(cached)
        first = torch.arange(min(COMPARED_IMAGES, len(data.train)), device=ranks.device)
        images = data.train.render(first, subset[: len(first), 0].long().to(ranks.device), trainer.channels_last)
        compare_with_teacher(store, live, images, arrays)
        if incomplete:
            store.teacher = about
            loader = data.train.loader(
                trainer.batch_size, train=True, device=ranks.device, channels_last=trainer.channels_last, workers=trainer.workers
            )  # fmt: skip
            write_cache(store, live, loader, subset, arrays, ranks)
    sources: list[LiveTeacher | CachedTeacher] = []
    if arrays:
        sources.append(CachedTeacher(store, arrays, subset, ranks.device))
    if live is not None and len(cached) < len(target_specs):
        live.set_target_specs([spec for spec in target_specs if spec not in cached])
        sources.append(live)
    return Teacher(sources, about, live, None if views == data.train.num_views else subset, store)


def _live(
    model: nn.Module,
    layers: Sequence[str],
    data: Dataset,
    ranks: Dist,
    settings: TeacherConfig,
    expects: Normalization | None,
    channels_last: bool,
) -> LiveTeacher:
    """The teacher on its device, its batch norms folded into its convolutions."""
    model.to(ranks.device).eval()
    if channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if not settings.batch_statistics:
        first = torch.arange(min(8, len(data.test)), device=ranks.device)
        fold_batch_norm(model, data.test.render(first, torch.full_like(first, data.test.unaugmented)), layers)
    images = Normalization(data.mean, data.std)
    return LiveTeacher(model, (), images=images, expects=expects or images, precision=settings.precision)


def _layers(target_specs: Sequence[TargetSpec]) -> list[str]:
    """The teacher's layers whose features are needed."""
    once = [spec.loss.teacher_layer for spec in target_specs if spec.loss.teacher_layer is not None]
    return [*(spec.layer for spec in target_specs), *once]


def plan_cache(
    cache: TeacherCache,
    target_specs: Sequence[TargetSpec],
    paths: Mapping[str, str],
    shapes: Mapping[str, Shape],
    large: bool,
) -> tuple[list[TargetSpec], list[CachedArray], str]:
    """Which targets are cached, their arrays, and what there is to say about it: sizes, free space, what stays live and why.

    Args:
        paths: layer → module path in the teacher.
        shapes: of one image's feature, by layer of the teacher.
        large: cache targets that are as large as the feature, too.
    """
    reasons = {spec.key: why_live(spec, shapes[spec.layer], large) for spec in target_specs}
    cached = [spec for spec in target_specs if reasons[spec.key] is None]
    arrays = [a for spec in cached for a in cached_arrays(spec, paths[spec.layer], shapes[spec.layer])]
    existing = next(folder for folder in (cache.folder, *cache.folder.absolute().parents) if folder.is_dir())
    free = readable_bytes(shutil.disk_usage(existing).free)
    lines = [
        f"teacher cache {cache.folder}: {cache.views} views of {cache.images:,} images, {cache.dtype}; {free} free"
    ]
    once = {array.name: array for array in arrays}.values()
    for array in once:
        done = cache.rows_written(array.name) / cache.rows
        state = "complete" if done == 1 else f"{100 * done:.0f} % there" if done else "to be computed"
        lines.append(f"  {array.name}: {readable_bytes(cache.size(array.shape))}, {state}")
    if len(once) > 1:
        lines.append(f"  together {readable_bytes(sum(cache.size(array.shape) for array in once))}")
    for spec in target_specs:
        if reason := reasons[spec.key]:
            loss_spec = spec.loss.spec(spec.student_shape, shapes[spec.layer])
            size = readable_bytes(sum(cache.size(shape) for shape in loss_spec.target.values()))
            lines.append(f"  loss.{spec.key.split(':')[0]} uses a live teacher: {reason} ({size})")
    return cached, arrays, "\n".join(lines)


def count_views(requested: int | str, num_views: int | None, data: str) -> int:
    """How many of an image's `num_views` views to cache. Raises ValueError for all of views that cannot be enumerated (None)."""
    if num_views is None and requested == "all":
        raise ValueError(
            f"cache.views=all: the views of data={data} are random-sized crops, which cannot be enumerated; choose a number of "
            "them, such as cache.views=16, or use cache.views=0"
        )
    if requested == "all":
        assert num_views is not None
        return num_views
    return int(requested) if num_views is None else min(int(requested), num_views)


def _views_shown(views: int, num_views: int | None, epochs: int) -> str:
    """What fewer views than live training has mean for the run; nothing where all are cached."""
    if views == num_views:
        return ""
    others = "new random ones" if num_views is None else f"random ones of all {num_views}"
    text = f"epochs show each image's {views} cached views in turn, not {others}"
    if views < epochs:
        enough = epochs if num_views is None else min(epochs, num_views)
        text += f"; that can cost accuracy; cache.views={enough} would repeat none"
    return text


def cached_teacher_sha256(path: str | None) -> str | None:
    """SHA-256 of the weights of the teacher whose cache `cache.path` names; None: there is no cache. Raises ValueError if it is damaged."""
    if path is None or not (Path(path) / MANIFEST).is_file():
        return None
    return read_manifest(Path(path))["key"]["teacher"]["sha256"]


def _digest(of: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:8]


def _with_accuracy(
    live: LiveTeacher,
    about: dict[str, Any],
    of: Mapping[str, Any],
    data: Dataset,
    ranks: Dist,
    trainer: TrainerConfig,
    folder: Path,
) -> dict[str, Any]:
    """`about` with the teacher's accuracy on the held-out images if there are any, else on the test images.

    It is measured once and kept in `folder`, beside all that it depends on.
    """
    split = "val" if data.val is not None else "test"
    images = data.split(split)
    of = {**of, "images": {"split": split, "sha256": images.fingerprint}}
    file = folder / f"{about['name']}-{_digest(of)}.json"
    kept = torch.zeros(4, dtype=torch.float64)
    if ranks.main and file.is_file():
        accuracy = json.loads(file.read_text())["accuracy"]
        kept += torch.tensor([accuracy[key] for key in ("loss", "top1", "top5", "images")], dtype=kept.dtype)
    loss, top1, top5, count = ranks.sum(kept.to(ranks.device)).tolist()
    if not count:
        batches = images.loader(
            trainer.eval_batch_size, train=False, rank=ranks.rank, world=ranks.world, device=ranks.device,
            channels_last=trainer.channels_last, workers=trainer.workers,
        ).epoch(0)  # fmt: skip
        total = len(images) // ranks.world
        batches = counted(batches, f"evaluating the teacher {about['name']} on {total:,} images", total)
        metrics = evaluate(TeacherOutput(live).eval(), batches, ranks)
        loss, top1, top5, count = metrics.loss, metrics.top1, metrics.top5, metrics.images
        if ranks.main:
            accuracy = asdict(metrics)
            write_whole(file, json.dumps({"of": of, "accuracy": accuracy}, indent=1).encode())
    if ranks.main:
        print(f"teacher {about['name']}: top-1 {top1:.2f} % on the {split} images ({about['weights']})")
    return about | {"evaluated_on": split, "loss": loss, "top1": top1, "top5": top5, "images": int(count)}


def check_accuracy(about: Mapping[str, Any], data: Dataset, settings: TeacherConfig, trained_here: bool) -> None:
    """Raises ValueError for a teacher below `teacher.min_accuracy`; by default for one that is not better than chance.

    Chance is predicting the most frequent class; the test is a one-sided binomial test at the 1 % level.
    """
    minimum, top1, split = settings.min_accuracy, about["top1"], about["evaluated_on"]
    if minimum is not None:
        reason = f"teacher.min_accuracy={minimum} is required" if top1 < minimum else None
    else:
        labels = data.split(split).labels
        chance = float(torch.bincount(labels).max() / len(labels))
        hits = round(top1 * len(labels) / 100)
        reason = None
        if binomtest(hits, len(labels), chance, alternative="greater").pvalue > 0.01:
            reason = f"predicting the most frequent class gives {100 * chance:.2f} %, so it may be at chance: "
            if trained_here:
                reason += "trained here: more epochs (teacher.train.epochs), or another learning rate?"
            else:
                reason += "wrong weights, classes in another order, or another normalisation (teacher.mean, .std)?"
    if reason is not None:
        raise ValueError(
            f"the teacher ({about['weights']}) scores {top1:.2f} % on the {split} images; {reason} "
            "teacher.min_accuracy=0 accepts any teacher"
        )


class TeacherOutput(nn.Module):
    """A teacher as a plain module from images of the data's normalisation to logits, for evaluation."""

    def __init__(self, live: LiveTeacher) -> None:
        super().__init__()
        self.live = live

    def forward(self, images: Any) -> Any:
        logits = self.live.logits(images)
        self.live.hooks.read()
        return logits


def expected_normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, metadata: Mapping[str, str]
) -> Normalization | None:
    """The normalisation that weights were trained with: as given, else as stored with them (metadata), else unknown."""
    stored = {key: [float(v) for v in metadata[key].split(",")] for key in ("mean", "std") if key in metadata}
    mean, std = mean or stored.get("mean"), std or stored.get("std")
    return Normalization(tuple(mean), tuple(std)) if mean and std else None
