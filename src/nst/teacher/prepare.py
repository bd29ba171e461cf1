"""The teacher of a run, from its settings to the source of its targets, and what is measured of it once and kept.

As `nst.run`, this sees the configuration.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.filesize import decimal
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.distiller import TargetSpec
from nst.evaluate import NEIGHBOURS, evaluate, knn_accuracy, labelled_features, pooled_features, whole_batches
from nst.files import digest, write_whole
from nst.layers import LOGITS, resolve
from nst.losses import Shape
from nst.storage.folder import not_default, read_json
from nst.teacher.cache import (
    CachedArray,
    CachedTeacher,
    TeacherCache,
    cached_arrays,
    read_manifest,
    why_live,
    write_cache,
)
from nst.teacher.ensemble import Ensemble
from nst.teacher.live import LiveTeacher, Teacher
from nst.teacher.network import Normalization, fold_batch_norm, load_teacher

if TYPE_CHECKING:
    from nst.build import Networks

log = logging.getLogger(__name__)


def make_teacher(settings: RunConfig, networks: "Networks", weights: str | None, dist: Dist, data: Dataset) -> Teacher:
    """Load and evaluate the teacher; with `cache.views` complete its cache, which may also replace the weights. Collective.

    Args:
        weights: the teacher's file; None for an ensemble, for published weights (`pretrained`), and if `cache.path` names a complete
            cache.

    Raises:
        ValueError: wrong weights, a teacher below its minimum accuracy, a cache that does not fit, is damaged or too large.
    """
    model, teacher, specs = networks.teacher, settings.teacher, networks.distiller.target_specs
    if model is None:
        return Teacher()
    name, output, live = teacher.model["name"], networks.teacher_shapes[LOGITS], None
    about: dict[str, Any] = {"sha256": cached_teacher_sha256(settings.cache.path)}
    if weights is not None or comes_trained(settings, model, output, data.num_classes):
        about = _load(settings, networks, weights, dist, data)
        live = LiveTeacher(model, (), precision=teacher.precision, batch_statistics=teacher.batch_statistics)

    # what its outputs depend on besides the images
    arguments = not_default(teacher.model, ("_target_", "name", "num_classes", "in_channels"))
    key: dict[str, Any] = {
        "teacher": {"name": name, "sha256": about["sha256"], "arguments": arguments, "precision": teacher.precision},
        "weights_key": teacher.weights_key,
        "teacher_input": {"mean": teacher.mean, "std": teacher.std, "size": teacher.input_size},
        "data": {"name": data.name, "mean": list(data.mean), "std": list(data.std)},
    }

    # the cache: which targets are in it, and what is missing
    cache, cached, arrays, views, incomplete = None, [], [], None, False
    if settings.cache.views:
        cache, cached, arrays, report = plan_cache(settings, networks, data, key)
        views, incomplete = data.train.view_subset(cache.views), dist.max(int(bool(cache.missing(arrays)))) == [1]
        if dist.main:
            print(report, flush=True)
    live_specs = [spec for spec in specs if spec not in cached]

    # how good it is, and what losses need of it
    if live is not None:
        for part, known in (*about.get("members", {}).items(), ("", about)):
            network, title = model.get_submodule(part), f"{name}.{part}".rstrip(".")
            known |= measure_accuracy(title, network, key, settings, data, dist, output == (data.num_classes,))
        about = {"name": name, **about}
    elif cache is None or incomplete or live_specs or cache.teacher is None:
        place = settings.cache.path if cache is None else cache.folder
        raise ValueError(f"the teacher cache {place} lacks targets of this run: name its teacher.weights")
    else:
        about = cache.teacher
    if data.labeled:
        check_accuracy(about, data, teacher.min_accuracy, trained_here=teacher.weights is None and weights is not None)
    folder = Path(settings.outputs) / data.name / "teachers" if cache is None else cache.folder
    init_losses(specs, model if live is not None else None, folder / name, key, settings, data, dist)

    # the sources of its targets
    sources: list[LiveTeacher | CachedTeacher] = []
    if cache is not None and views is not None and arrays:
        if live is not None and incomplete:
            cache.teacher = about
            batches = {"channels_last": settings.trainer.channels_last, "workers": settings.trainer.workers}
            loader = data.train.loader(settings.trainer.batch_size, train=True, device=dist.device, **batches)
            writer = live.beside(cached)
            write_cache(cache, writer, loader, views, arrays, dist)
            writer.hooks.remove()
        sources.append(CachedTeacher(cache, arrays, views, dist.device))
    if live is not None and live_specs:
        live = live.beside(live_specs)
        sources.append(live)
    all_views = cache is None or cache.views == data.train.num_views
    return Teacher(sources, about, live, None if all_views else views, cache)


def comes_trained(settings: RunConfig, model: nn.Module, output: Shape, classes: int) -> bool:
    """Whether the teacher is used as it is, rather than trained first: by a weights file, published weights, or as an ensemble.

    `output` is the shape of the network's output for one image, `classes` those of the data.

    Raises:
        ValueError: a network that cannot be trained here; a key of weights, where there are none.
    """
    teacher, ensemble, record = settings.teacher, isinstance(model, Ensemble), getattr(model, "input_format", None)
    published = record is not None and (output != (classes,) or record.classes == classes)
    if not ensemble and (teacher.weights is not None or published):
        return True
    for key in ("weights", "weights_key", "mean", "std", "input_size"):
        value = getattr(teacher, key)
        if value is not None and (ensemble or cached_teacher_sha256(settings.cache.path) is None):
            raise ValueError(
                f"teacher.{key}={value} is for a teacher with weights: name teacher.weights, or a member's own"
            )
    if not ensemble and output != (classes,):
        raise ValueError(f"teacher.model gives {output}, not {classes} classes: to use it, name teacher.weights")
    return ensemble


def _load(settings: RunConfig, networks: "Networks", weights: str | None, dist: Dist, data: Dataset) -> dict[str, Any]:
    """Bring the teacher with its weights to its device, its batch norms folded; what is known of it, and of each of its `members`."""
    model, teacher, images = networks.teacher, settings.teacher, Normalization(tuple(data.mean), tuple(data.std))
    assert model is not None
    model.to(dist.device).eval().requires_grad_(False)
    if isinstance(model, Ensemble):
        about = model.load(images)
    else:
        about = load_teacher(model, images, weights, teacher.weights_key, teacher.mean, teacher.std)
    for member, known in about.get("members", {"": about}).items() if dist.main else ():
        print(f"teacher {teacher.model['name']}.{member}".rstrip(".") + f": images normalised by {known['input']}")
    if settings.trainer.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if not teacher.batch_statistics:
        layers = [(spec.layer, spec.loss.teacher_layer) for spec in networks.distiller.target_specs]
        first = torch.arange(min(8, len(data.test)), device=dist.device)
        some = data.test.render(first, torch.full_like(first, data.test.unaugmented))
        fold_batch_norm(model, some, [layer for both in layers for layer in both if layer is not None])
    return about


def measure_accuracy(
    name: str, network: nn.Module, key: dict[str, Any], settings: RunConfig, data: Dataset, dist: Dist, classifies: bool
) -> dict[str, Any]:
    """The accuracy on the held-out images if there are any, else on the test images; measured once and kept in a file. Collective.

    Args:
        key: what its outputs depend on besides the images, as plain values; a hash of all ends the file's name.
        classifies: the outputs are logits of the data's classes; else the accuracy of its nearest neighbours takes the place of top-1.

    Returns:
        `measure` ("top1" or "knn"), `evaluated_on`, `loss`, `top1`, `top5` and `images`; without labels {}.
    """
    if not data.labeled:
        return {}
    split, measure = "test" if data.val is None else "val", "top1" if classifies else "knn"
    images, trainer, precision = data.split(split), settings.trainer, settings.teacher.precision
    known = None if classifies else data.train.fingerprint
    of = {**key, "measure": measure, "images": {"split": split, "sha256": images.fingerprint, "known": known}}
    file = Path(settings.outputs) / data.name / "teachers" / f"{name}-{digest(of)}.json"
    found: dict[str, Any] | None = read_json(file, "delete it")["accuracy"] if file.is_file() else None
    if dist.max(int(found is None)) == [1] or found is None:
        title = f"evaluating the teacher {name}"
        if classifies:
            batches = whole_batches(images, torch.arange(len(images)), dist, trainer, title=title)
            metrics = evaluate(network, (batch for _, _, batch in batches), dist, precision)
            found = {figure: getattr(metrics, figure) for figure in ("loss", "top1", "top5", "images")}
        else:
            features = labelled_features(network, (data.train, images), dist, trainer, precision=precision, title=title)
            found = {"loss": 0.0, "top1": knn_accuracy(*features), "top5": 0.0, "images": len(features[-1])}
        if dist.main:
            write_whole(file, json.dumps({"of": of, "accuracy": found}, indent=1).encode())
    if dist.main:
        what = "top-1" if classifies else f"accuracy of the {NEIGHBOURS} nearest neighbours"
        print(f"teacher {name}: {what} {found['top1']:.2f} % on the {split} images")
    return {"measure": measure, "evaluated_on": split, **found, "images": int(found["images"])}


def check_accuracy(about: Mapping[str, Any], data: Dataset, minimum: float | None, trained_here: bool) -> None:
    """Raises ValueError for a teacher below `teacher.min_accuracy`; by default for one that is not better than chance.

    One that was `trained_here`, perhaps for a quick try, is only warned about. Chance is predicting the most frequent class; the test is a one-sided binomial test at the 1 % level.
    """
    top1, split, images = about["top1"], about["evaluated_on"], about["images"]
    found = f"the teacher ({about['weights']}) scores {top1:.2f} % on the {split} images"
    if minimum is None:
        from scipy.stats import binomtest  # takes half a second to import

        labels = data.split(split).labels
        chance = float(torch.bincount(labels).max() / len(labels))
        if binomtest(round(top1 * images / 100), images, chance, alternative="greater").pvalue > 0.01:
            found += f", the most frequent class gives {100 * chance:.2f} %"
            if not trained_here:
                why = "wrong weights, or classes in another order? teacher.min_accuracy=0 accepts it"
                raise ValueError(f"{found}: {why}")
            log.warning("%s: it can teach little; teacher.train.epochs trains it longer", found)
    elif top1 < minimum:
        raise ValueError(f"{found}; teacher.min_accuracy={minimum} is required")


def init_losses(
    specs: Sequence[TargetSpec],
    network: nn.Module | None,
    stem: Path,
    key: dict[str, Any],
    settings: RunConfig,
    data: Dataset,
    dist: Dist,
) -> None:
    """Hand every loss with a `teacher_layer` its statistics over the training images, computed once and kept in files. Collective.

    Args:
        stem: folder, and beginning of the files' names; `network` and `key` as of `measure_accuracy`.

    Raises:
        ValueError: there is no file, and no network to compute them.
    """
    images, every = data.train, torch.arange(len(data.train))
    for loss in {spec.loss: None for spec in specs if spec.loss.teacher_layer is not None}:
        kind, layer = type(loss).__name__, loss.teacher_layer
        of = {**key, "images": images.fingerprint, "layer": layer, "loss": kind}
        file = stem.with_name(f"{stem.name}-{kind.lower()}-{digest(of)}.safetensors")
        try:
            statistics = load_file(file)["statistics"]
        except (OSError, KeyError, SafetensorError):  # not there, or damaged
            statistics = None
        if dist.max(int(statistics is None)) == [1] or statistics is None:
            if network is None:
                raise ValueError(f"{kind} needs {file}, which is computed once from the teacher: name teacher.weights")
            title, precision = f"{kind}: features of {len(images):,} images", settings.teacher.precision
            features = pooled_features(network, images, every, dist, settings.trainer, layer, precision, title=title)
            statistics = loss.teacher_statistics(features, images.labels.to(features.device)).cpu()
            if dist.main:
                write_whole(file, save({"statistics": statistics}, {"of": json.dumps(of)}))
                print(f"{kind}: computed once from the teacher over {len(images):,} images, kept in {file}")
        loss.init_teacher(statistics)


def plan_cache(
    settings: RunConfig, networks: "Networks", data: Dataset, key: Mapping[str, Any] | None = None
) -> tuple[TeacherCache, list[TargetSpec], list[CachedArray], str]:
    """The cache of a run, the targets that are in it, their arrays, and a report: sizes, free space, what stays live and why.

    Args:
        key: what the teacher's outputs depend on besides the images; None: as if nothing was cached yet, without reading the images.

    Raises:
        ValueError: all of views that cannot be enumerated; as `TeacherCache`.
    """
    assert networks.teacher is not None
    config, images, most = settings.cache, data.train, data.train.num_views
    if config.views == "all" and most is None:
        raise ValueError(f"cache.views=all: data={data.name} has endless random-sized crops; use a number, such as 16")
    views = most if config.views == "all" and most else min(int(config.views), most or int(config.views))
    folder, place = Path(settings.outputs) / data.name / "cache", {}
    if key is not None:
        place = {**key, "dtype": config.dtype, "views": {"scheme": images.view_key, "number": views}}
        place["data"] = key["data"] | {"sha256": images.fingerprint}
        folder = Path(config.path or folder / f"{settings.teacher.model['name']}-{digest(place)}")
    cache = TeacherCache(folder, place, len(images), views, config.dtype)

    # its targets
    cached: list[TargetSpec] = []
    arrays, live = dict[str, list[CachedArray]](), list[str]()
    for spec in networks.distiller.target_specs:
        shape = networks.teacher_shapes[spec.layer]
        if (reason := why_live(spec, shape, config.large)) is None:
            cached.append(spec)
            for array in cached_arrays(spec, resolve(networks.teacher, spec.layer), shape):
                arrays.setdefault(array.name, []).append(array)
        else:
            live.append(f"  loss.{spec.key.split(':')[0]} uses a live teacher: {reason}")

    # the report
    existing = next(part for part in (folder, *folder.absolute().parents) if part.is_dir())
    free, total = decimal(shutil.disk_usage(existing).free), 0
    lines = [f"teacher cache {folder}: {views} views of {len(images):,} images, {config.dtype}; {free} free"]
    for name, (array, *_) in arrays.items():
        total += (size := cache.rows * cache.record(array.shape).itemsize)
        lines.append(f"  {name}: {decimal(size)}, {'complete' if name in cache.arrays else 'to be computed'}")
    lines += [f"  together {decimal(total)}", *live]
    if views != most:
        others = "new random ones" if most is None else f"random ones of all {most}"
        lines.append(f"epochs show each image's {views} cached views in turn, not {others}: fewer can cost accuracy")
    return cache, cached, [array for same in arrays.values() for array in same], "\n".join(lines)


def cached_teacher_sha256(path: str | None) -> str | None:
    """SHA-256 of the weights of the teacher whose cache `cache.path` names; None: there is no cache. Raises ValueError if it is damaged."""
    return None if path is None else read_manifest(path)["key"].get("teacher", {}).get("sha256")
