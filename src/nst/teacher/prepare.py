"""The teacher of a run: its weights, its accuracy, and where its targets come from."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nst.config import CacheConfig, TeacherConfig, TrainerConfig
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.distiller import TargetSpec
from nst.files import sha256_of
from nst.layers import LOGITS, resolve
from nst.losses import Shape
from nst.models.external import InputFormat
from nst.models.weights import load_weights
from nst.teacher.accuracy import check_accuracy, digest, measured_accuracy
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
from nst.teacher.ensemble import Ensemble, state_sha256
from nst.teacher.live import LiveTeacher, Normalization, Teacher, fold_batch_norm, input_normalization
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
        weights: its file; None for an ensemble, for published weights (`pretrained`), and if `cache.path` names a complete cache.
        target_specs: of the student's terms.
        shapes: of one image's feature, by layer of the teacher, the logits included.
        arguments: of the network, as far as the weights do not contain them (an ε, for example).
        outputs: the folder of all runs.

    Raises:
        ValueError: wrong weights, a teacher below its minimum accuracy, a cache that does not fit, is damaged or too large.
    """
    if model is None:
        return Teacher()
    live, about = None, {"name": name, "sha256": cached_teacher_sha256(cache.path)}
    if weights is not None or comes_trained(model, shapes[LOGITS], data.num_classes):
        live, about = _load(model, weights, _layers(target_specs), data, ranks, name, settings, trainer.channels_last)
    facts = {"name": name, "sha256": about["sha256"], "arguments": _without_files(arguments)}
    key: dict[str, Any] = {
        "teacher": facts | {"precision": settings.precision},
        "data": {"name": data.name, "mean": list(data.mean), "std": list(data.std)},
        "teacher_input": {"mean": settings.mean, "std": settings.std},
    }
    folder, classifies = Path(outputs) / data.name, shapes[LOGITS] == (data.num_classes,)

    def evaluated(live: LiveTeacher) -> dict[str, Any]:
        """What is known of the teacher, with its accuracy and that of its members."""
        found, members = dict(about), {}
        for member, facts in about.get("members", {}).items():
            network = LiveTeacher(model.get_submodule(member), (), precision=settings.precision)
            members[member] = facts | measured_accuracy(
                network, f"{name}.{member}", key, classifies, data, ranks, trainer, folder / "teachers"
            )
        if members:
            found["members"] = members
        found |= measured_accuracy(live, name, key, classifies, data, ranks, trainer, folder / "teachers")
        return found

    if not cache.views:
        assert live is not None
        about = evaluated(live)
        check_accuracy(about, data, settings, trained_here=settings.weights is None)
        init_teacher_statistics(target_specs, live, key, data, ranks, trainer, folder / "teachers")
        live.set_target_specs(target_specs)
        if settings.batch_statistics:
            live.use_batch_statistics()
        return Teacher((live,), about, live)

    views = count_views(cache.views, data.train.num_views, data.name)
    key_of_cache = key | {"dtype": cache.dtype, "views": {"scheme": data.train.view_key, "number": views}}
    key_of_cache["data"] = key["data"] | {"sha256": data.train.fingerprint}
    place = Path(cache.path) if cache.path else folder / "cache" / f"{name}-{digest(key_of_cache)}"
    store = TeacherCache(place, key_of_cache, len(data.train), views, cache.dtype)
    paths = {spec.layer: resolve(model, spec.layer) for spec in target_specs}
    cached, arrays, report = plan_cache(store, target_specs, paths, shapes, cache.large)
    (incomplete,) = ranks.max(int(bool(store.missing(arrays))))
    if ranks.main:
        print(f"{report}\n{_views_shown(views, data.train.num_views, trainer.epochs)}".strip(), flush=True)
    if live is None and (incomplete or len(cached) < len(target_specs)):
        raise ValueError(
            f"the teacher cache {place} does not have all targets of this run, so the teacher itself is needed: "
            "name its teacher.weights"
        )
    if live is not None and (incomplete or store.teacher is None):
        about = evaluated(live)
    elif store.teacher is not None:
        about = store.teacher
    check_accuracy(about, data, settings, trained_here=settings.weights is None and cache.path is None)
    init_teacher_statistics(target_specs, live, key, data, ranks, trainer, place)
    subset = data.train.view_subset(views)
    if live is not None and arrays:
        live.set_target_specs(cached)
        first = torch.arange(min(COMPARED_IMAGES, len(data.train)), device=ranks.device)
        some = data.train.render(first, subset[: len(first), 0].long().to(ranks.device), trainer.channels_last)
        compare_with_teacher(store, live, some, arrays)
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


def comes_trained(model: nn.Module, output: Shape, classes: int) -> bool:
    """Whether a teacher without a weights file is used as it is, rather than trained first.

    So are an ensemble, whose members name their files, and published weights (`pretrained`) with their own classifier or none.

    Args:
        output: shape of the network's output for one image.
        classes: of the data.

    Raises:
        ValueError: a network without a classifier and without weights, which cannot be trained here.
    """
    if isinstance(model, Ensemble):
        return True
    record: InputFormat | None = getattr(model, "input_format", None)
    if record is not None and (output != (classes,) or record.classes == classes):
        return True
    if output != (classes,):
        raise ValueError(
            f"teacher.model gives {output} values an image, data.num_classes={classes}: a network without a classifier of these classes cannot "
            "be trained here: name its teacher.weights, or use published ones (teacher.model.pretrained=true)"
        )
    return False


def _load(
    model: nn.Module,
    weights: str | None,
    layers: Sequence[str],
    data: Dataset,
    ranks: Dist,
    name: str,
    settings: TeacherConfig,
    channels_last: bool,
) -> tuple[LiveTeacher, dict[str, Any]]:
    """The teacher with its weights, on its device, its batch norms folded into its convolutions; and what is known of it."""
    images = Normalization(data.mean, data.std)
    expects, inputs = images, {}
    about: dict[str, Any] = {"name": name, "parameters": sum(p.numel() for p in model.parameters())}
    if isinstance(model, Ensemble):
        members = model.load(images)
        about |= {"weights": f"those of {', '.join(members)}", "members": members}
        about["sha256"] = digest({member: facts["sha256"] for member, facts in members.items()}, 64)
        inputs = {f"{name}.{member}": facts["input"] for member, facts in members.items()}
    else:
        metadata = {} if weights is None else load_weights(model, weights, settings.weights_key)
        expects, source = input_normalization(model, settings.mean, settings.std, metadata, images)
        about |= {"weights": weights or "pretrained", "sha256": sha256_of(weights) if weights else state_sha256(model)}
        inputs[name] = f"{expects}, {source}"
    if ranks.main:
        for network, line in inputs.items():
            print(f"teacher {network}: images normalised by {line}")
    model.to(ranks.device).eval()
    if channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if not settings.batch_statistics:
        first = torch.arange(min(8, len(data.test)), device=ranks.device)
        fold_batch_norm(model, data.test.render(first, torch.full_like(first, data.test.unaugmented)), layers)
    return LiveTeacher(model, (), images=images, expects=expects, precision=settings.precision), about


def _layers(target_specs: Sequence[TargetSpec]) -> list[str]:
    """The teacher's layers whose features are needed."""
    once = [spec.loss.teacher_layer for spec in target_specs if spec.loss.teacher_layer is not None]
    return [*(spec.layer for spec in target_specs), *once]


def _without_files(node: Any) -> Any:
    """Nested settings of a network without the paths of weights, which their SHA-256 stands for."""
    if isinstance(node, Mapping):
        return {key: _without_files(value) for key, value in node.items() if key != "weights"}
    return node


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


def cache_report(
    model: nn.Module,
    target_specs: Sequence[TargetSpec],
    shapes: Mapping[str, Shape],
    cache: CacheConfig,
    data: Dataset,
    outputs: str,
) -> str:
    """What a cache of these targets would hold, as `plan_cache` says it, before anything is loaded or written."""
    views = count_views(cache.views, data.train.num_views, data.name)
    empty = TeacherCache(Path(outputs) / data.name / "cache", {}, len(data.train), views, cache.dtype)
    paths = {spec.layer: resolve(model, spec.layer) for spec in target_specs}
    return plan_cache(empty, target_specs, paths, shapes, cache.large)[2]


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
    return read_manifest(Path(path))["key"].get("teacher", {}).get("sha256")
