"""The teacher of a run, from its settings to the source of its targets. As `nst.run`, this sees the configuration."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.filesize import decimal
from torch import nn

from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.distiller import TargetSpec
from nst.layers import LOGITS, resolve
from nst.losses import Shape
from nst.storage.folder import not_default
from nst.teacher.cache import (
    MANIFEST,
    CachedArray,
    CachedTeacher,
    TeacherCache,
    cached_arrays,
    compare_with_teacher,
    read_manifest,
    why_live,
    write_cache,
)
from nst.teacher.ensemble import Ensemble
from nst.teacher.live import LiveTeacher, Teacher
from nst.teacher.measure import Measurements, check_accuracy, digest
from nst.teacher.network import Normalization, fold_batch_norm, load_teacher

if TYPE_CHECKING:
    from nst.build import Networks

COMPARED_IMAGES = 8  # of which a cache is compared with its teacher at each start


def make_teacher(settings: RunConfig, networks: "Networks", weights: str | None, dist: Dist, data: Dataset) -> Teacher:
    """Load and evaluate the teacher; with `cache.views` complete its cache, which may also replace the weights. Collective.

    Args:
        weights: the teacher's file; None for an ensemble, for published weights (`pretrained`), and if `cache.path` names a complete
            cache.

    Raises:
        ValueError: wrong weights, a teacher below its minimum accuracy, a cache that does not fit, is damaged or too large.
    """
    model, specs, shapes = networks.teacher, networks.distiller.target_specs, networks.teacher_shapes
    if model is None:
        return Teacher()
    teacher, name, classifies = settings.teacher, settings.teacher.model["name"], shapes[LOGITS] == (data.num_classes,)
    loaded = weights is not None or comes_trained(settings, model, shapes[LOGITS], data.num_classes)
    about: dict[str, Any] = {"sha256": cached_teacher_sha256(settings.cache.path)}
    if loaded:
        about = _load(settings, networks, weights, dist, data)

    # what the teacher's outputs depend on besides the images
    arguments = not_default(teacher.model, ("_target_", "name", "num_classes", "in_channels"))
    facts = {"name": name, "sha256": about["sha256"], "arguments": arguments, "precision": teacher.precision}
    if teacher.weights_key is not None:
        facts["weights_key"] = teacher.weights_key
    key: dict[str, Any] = {
        "teacher": facts,
        "data": {"name": data.name, "mean": list(data.mean), "std": list(data.std)},
        "teacher_input": {"mean": teacher.mean, "std": teacher.std}
        | ({"size": teacher.input_size} if teacher.input_size else {}),
    }

    # the cache: which targets are in it, and what is missing
    store, subset, cached, arrays = None, None, [], []
    if settings.cache.views:
        views, images = count_views(settings.cache.views, data), data.train
        place = {**key, "dtype": settings.cache.dtype, "views": {"scheme": images.view_key, "number": views}}
        place["data"] = key["data"] | {"sha256": images.fingerprint}
        path = settings.cache.path or Path(settings.outputs) / data.name / "cache" / f"{name}-{digest(place)}"
        store = TeacherCache(path, place, len(images), views, settings.cache.dtype)
        cached, arrays, report = plan_cache(store, networks, settings.cache.large)
        subset = data.train.view_subset(store.views)
        if dist.main:
            print(
                f"{report}\n{_views_shown(store.views, data.train.num_views, settings.trainer.epochs)}".strip(),
                flush=True,
            )
    live_specs = [spec for spec in specs if spec not in cached]
    incomplete = store is not None and dist.max(int(bool(store.missing(arrays)))) == [1]
    if not loaded and (store is None or incomplete or live_specs or store.teacher is None):
        where = settings.cache.path if store is None else store.folder
        raise ValueError(
            f"the teacher cache {where} does not have all targets of this run, so the teacher itself is needed: name its teacher.weights"
        )

    # how good it is, and what losses need of it
    folder = Path(settings.outputs) / data.name / "teachers"
    measured = Measurements(
        name, model if loaded else None, teacher.precision, key, folder, data, dist, settings.trainer
    )
    if loaded:
        for member, known in about.get("members", {}).items():
            network = replace(measured, name=f"{name}.{member}", network=model.get_submodule(member))
            known |= network.accuracy(classifies)
        about = {"name": name, **about, **measured.accuracy(classifies)}
    else:
        assert store is not None
        about = store.teacher or {}
    trained_here = weights is not None and teacher.weights is None
    if data.labeled:
        check_accuracy(about, data, teacher.min_accuracy, trained_here)
    (measured if store is None else replace(measured, folder=store.folder)).init_losses(specs)

    # the sources of its targets
    live, sources = None, []
    if loaded:
        live = LiveTeacher(model, cached, precision=teacher.precision, batch_statistics=teacher.batch_statistics)
    if live is not None and store is not None and subset is not None and arrays:
        first = torch.arange(min(COMPARED_IMAGES, len(data.train)), device=dist.device)
        views = subset[: len(first), 0].long().to(dist.device)
        compare_with_teacher(store, live, data.train.render(first, views, settings.trainer.channels_last), arrays)
        if incomplete:
            store.teacher = about
            loader = measured.loader(data.train, settings.trainer.batch_size, train=True)
            write_cache(store, live, loader, subset, arrays, dist)
    if store is not None and subset is not None and arrays:
        sources.append(CachedTeacher(store, arrays, subset, dist.device))
    if live is not None and live_specs:
        live.set_target_specs(live_specs)
        sources.append(live)
    all_views = store is None or store.views == data.train.num_views
    return Teacher(sources, about, live, None if all_views else subset, store)


def comes_trained(settings: RunConfig, model: nn.Module, output: Shape, classes: int) -> bool:
    """Whether the teacher is used as it is, rather than trained first.

    With a weights file; an ensemble, whose members name theirs; published weights (`pretrained`) with their own classifier or none.

    Args:
        output: shape of the network's output for one image.
        classes: of the data.

    Raises:
        ValueError: a network without a classifier and without weights, which cannot be trained here; a key that says how weights
            are to be used, where the teacher has no such weights.
    """
    teacher, record = settings.teacher, getattr(model, "input_format", None)
    given = [
        key for key in ("weights", "weights_key", "mean", "std", "input_size") if getattr(teacher, key) is not None
    ]
    if isinstance(model, Ensemble):
        if given:
            key = f"teacher.model.members.NAME.{given[0]}"
            raise ValueError(f"teacher.{given[0]}: the members of an ensemble have their own; use {key}")
        return True
    if teacher.weights is not None or (record is not None and (output != (classes,) or record.classes == classes)):
        return True
    if output != (classes,):
        raise ValueError(
            f"teacher.model gives {output} values an image, data.num_classes={classes}: a network without a classifier of these classes cannot "
            "be trained here: name its teacher.weights, or use published ones (teacher.model.pretrained=true)"
        )
    if given and cached_teacher_sha256(settings.cache.path) is None:
        raise ValueError(
            f"teacher.{given[0]}={getattr(teacher, given[0])} is for weights that are given, but this teacher is trained here, on images as "
            "the data has them: name its teacher.weights, or leave this out"
        )
    return False


def _load(settings: RunConfig, networks: "Networks", weights: str | None, dist: Dist, data: Dataset) -> dict[str, Any]:
    """Bring the teacher with its weights to its device, its batch norms folded into its convolutions.

    Returns:
        What is known of it; with `members`, what is known of each.
    """
    model, teacher, images = networks.teacher, settings.teacher, Normalization(tuple(data.mean), tuple(data.std))
    assert model is not None
    name, inputs = teacher.model["name"], {}
    model.to(dist.device).eval().requires_grad_(False)
    if isinstance(model, Ensemble):
        members = model.load(images)
        inputs = {f"{name}.{member}": facts["input"] for member, facts in members.items()}
        about = {"weights": f"those of {', '.join(members)}", "members": members}
        about["sha256"] = digest({member: facts["sha256"] for member, facts in members.items()}, 64)
        about["parameters"] = sum(facts["parameters"] for facts in members.values())
    else:
        about = load_teacher(model, images, weights, teacher.weights_key, teacher.mean, teacher.std)
        inputs = {name: about["input"]}
    for network, line in inputs.items() if dist.main else ():
        print(f"teacher {network}: images normalised by {line}")
    if settings.trainer.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if not teacher.batch_statistics:
        specs = networks.distiller.target_specs
        once = [spec.loss.teacher_layer for spec in specs if spec.loss.teacher_layer is not None]
        first = torch.arange(min(8, len(data.test)), device=dist.device)
        some = data.test.render(first, torch.full_like(first, data.test.unaugmented))
        fold_batch_norm(model, some, [*(spec.layer for spec in specs), *once])
    return about


def plan_cache(
    cache: TeacherCache, networks: "Networks", large: bool
) -> tuple[list[TargetSpec], list[CachedArray], str]:
    """Which targets are cached, their arrays, and what there is to say about it: sizes, free space, what stays live and why.

    Args:
        large: cache targets that are as large as the feature, too.
    """
    assert networks.teacher is not None
    existing = next(folder for folder in (cache.folder, *cache.folder.absolute().parents) if folder.is_dir())
    free = decimal(shutil.disk_usage(existing).free)
    lines = [
        f"teacher cache {cache.folder}: {cache.views} views of {cache.images:,} images, {cache.dtype}; {free} free"
    ]
    cached: list[TargetSpec] = []
    arrays: dict[str, list[CachedArray]] = {}
    live: list[str] = []
    for spec in networks.distiller.target_specs:
        shape = networks.teacher_shapes[spec.layer]
        if (reason := why_live(spec, shape, large)) is None:
            cached.append(spec)
            for array in cached_arrays(spec, resolve(networks.teacher, spec.layer), shape):
                arrays.setdefault(array.name, []).append(array)
        else:
            size = decimal(sum(map(cache.size, spec.loss.target_shapes(spec.student_shape, shape).values())))
            live.append(f"  loss.{spec.key.split(':')[0]} uses a live teacher: {reason} ({size})")
    for name, (array, *_) in arrays.items():
        done = cache.rows_written(name) / cache.rows
        state = "complete" if done == 1 else f"{100 * done:.0f} % there" if done else "to be computed"
        lines.append(f"  {name}: {decimal(cache.size(array.shape))}, {state}")
    if len(arrays) > 1:
        lines.append(f"  together {decimal(sum(cache.size(array.shape) for array, *_ in arrays.values()))}")
    return cached, [array for same in arrays.values() for array in same], "\n".join(lines + live)


def cache_report(settings: RunConfig, networks: "Networks", data: Dataset) -> str:
    """What a cache of a run's targets would hold, as `plan_cache` says it, before anything is loaded or written."""
    folder, views = Path(settings.outputs) / data.name / "cache", count_views(settings.cache.views, data)
    empty = TeacherCache(folder, {}, len(data.train), views, settings.cache.dtype)
    return plan_cache(empty, networks, settings.cache.large)[2]


def count_views(requested: int | str, data: Dataset) -> int:
    """How many of an image's views to cache. Raises ValueError for all of views that cannot be enumerated."""
    most = data.train.num_views
    if requested != "all":
        return min(int(requested), most or int(requested))
    if most is None:
        raise ValueError(
            f"cache.views=all: the views of data={data.name} are random-sized crops, which cannot be enumerated; choose a number of "
            "them, such as cache.views=16, or use cache.views=0"
        )
    return most


def _views_shown(views: int, num_views: int | None, epochs: int) -> str:
    """What fewer views than live training has mean for the run; nothing where all are cached."""
    if views == num_views:
        return ""
    others = "new random ones" if num_views is None else f"random ones of all {num_views}"
    text = f"epochs show each image's {views} cached views in turn, not {others}"
    if views < epochs:
        text += f"; that can cost accuracy; cache.views={min(epochs, num_views or epochs)} would repeat none"
    return text


def cached_teacher_sha256(path: str | None) -> str | None:
    """SHA-256 of the weights of the teacher whose cache `cache.path` names; None: there is no cache. Raises ValueError if it is damaged."""
    if path is None or not (Path(path) / MANIFEST).is_file():
        return None
    return read_manifest(Path(path))["key"].get("teacher", {}).get("sha256")
