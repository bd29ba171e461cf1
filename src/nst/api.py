"""Runs from Python: what `nst train` and `nst runs` do, and the same loop for objects of one's own; docs/library.md shows them.

In place of exit statuses there are exceptions: ValueError for a setting or a file, FloatingPointError for a loss that is not
finite, `nst.Interrupted` for a run that was stopped and saved.
"""

import copy
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from types import FunctionType
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nst import build
from nst.cli.compose import composed
from nst.cli.train import dry_run
from nst.config import CONFIGS, TrainerConfig, check_ranges, differences
from nst.data.batch import Loader, Stream
from nst.dist import join
from nst.distiller import Distiller, Term, seeded
from nst.evaluate import Metrics, evaluate
from nst.export.formats import Rescaled
from nst.finished import finished_run
from nst.layers import LOGITS, Pair, feature_shapes, pairs_of
from nst.loop import Loop, Training, step_seed
from nst.losses import TransferLoss
from nst.models.weights import load_weights
from nst.optim import MakeOptimizer, OneCycle, Schedule
from nst.run import execute, lock, train_and_write
from nst.storage.folder import METRICS, SUMMARY, RunFolder, not_default, read_json, run_folder
from nst.storage.record import Record
from nst.tables.frame import read_frame
from nst.teacher import LiveTeacher, Teacher
from nst.trial import check_batches


@dataclass(frozen=True)
class Run:
    """A run by its folder."""

    folder: Path
    network: nn.Module | None = field(default=None, repr=False)  # the trained student of `distil`

    @property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`. Raises ValueError if the run is not finished."""
        if not (self.folder / SUMMARY).is_file():
            raise ValueError(f"{self.folder}: the run is not finished; the same call continues it")
        return read_json(self.folder / SUMMARY)

    @property
    def metrics(self) -> pd.DataFrame:
        """The events of `metrics.jsonl`, a row each: kind ("train", "eval"), step, epoch, loss, top1, terms.kd, …"""
        lines = (self.folder / METRICS).read_text().splitlines()
        return pd.json_normalize([json.loads(line) for line in lines])

    def student(self, weights: str = "last") -> nn.Module:
        """The network of the "last" or "best" epoch in evaluation mode on the CPU: images `[B, C, H, W]` → logits.

        Its images are pixels in 0 … 1, which it normalises itself; for the student of `distil` images as its data set gives them.
        Raises ValueError if the run is not finished or its files are damaged.
        """
        if self.network is not None:
            load_weights(self.network, self.folder / f"{'student' if weights == 'last' else weights}.safetensors")
            return self.network.eval()
        run = finished_run(self.folder, weights=weights)
        mean, std = (torch.tensor(run.settings.data[key], dtype=torch.float32) for key in ("mean", "std"))
        return Rescaled(run.student(), 1 / std, -mean / std).eval()


def train(*overrides: str) -> Run:
    """Train as `nst train` does, with overrides such as "model=resnet20", "trainer.epochs=5": the same folder, the same result.

    What was interrupted, also by a notebook's stop button, continues with the same call. For exceptions see the module.
    """
    settings = build.settings(composed(overrides))
    folder = run_folder(asdict(settings))
    if settings.dry_run:
        dry_run(settings)
    else:
        with join(settings.trainer.device, settings.trainer.timeout) as dist:
            dist.check_same_settings(asdict(settings))
            execute(settings, dist)
    return Run(folder)


def runs(outputs: str | PathLike[str] = "outputs") -> pd.DataFrame:
    """All runs below a folder, a row each; see `nst.tables.frame.read_run` for the columns. Damaged runs are logged."""
    damaged: list[str] = []
    frame = read_frame(sorted(file.parent for file in Path(outputs).glob("*/*/*/*/config.json")), damaged)
    for line in damaged:
        logging.getLogger(__name__).warning("%s", line)
    return frame


def distil(
    student: nn.Module,
    teacher: nn.Module | None,
    loss: Mapping[str, float | tuple[float, TransferLoss]],
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    epochs: int,
    batch_size: int = 128,
    layers: Any = "last",
    lr: float = 0.1,
    optimizer: MakeOptimizer | None = None,
    schedule: Schedule | None = None,
    trainer: TrainerConfig | None = None,
    workers: int = 0,
    seed: int = 0,
    folder: str | PathLike[str] | None = None,
) -> Run:
    """Train `student` on labels and on what `teacher` knows, by the loop of `nst train`, without configuration.

    Random transforms are seeded by (seed, epoch, image): `workers` do not change the result, and a stopped run continues exactly.

    Args:
        student, teacher: images `[B, C, H, W]` → logits `[B, classes]`; trained in place, and left as it is. None: labels alone.
        loss: of each term its weight λ: `{"kd": 16, "nst_poly": 50}` are the losses of `loss=NAME` with their defaults,
            `{"mine": (2.0, MyLoss())}` is one of your own. Without "ce" the cross-entropy is added, with weight 1.
        train, test: give (image, label): a float32 tensor `[C, H, W]`, of one size in each, as both networks see it, and a class number.
        layers: compared by all losses on features: a layer of both networks, or a list of `{"teacher": …, "student": …}`.
        lr, optimizer, schedule: by default SGD with momentum 0.9, weight decay 5e-4 and one cycle of the rate; `optimizer` makes one from
            parameters, such as `partial(torch.optim.AdamW, lr=1e-3)`.
        trainer: everything else of the loop.
        folder: of the run, where the same call continues or returns the result; None: a temporary one.

    Raises:
        ValueError: networks, losses or images that do not fit together; a folder of another run.
    """
    settings = replace(trainer or TrainerConfig(), epochs=epochs, batch_size=batch_size)
    check_ranges(settings, "trainer.")
    if settings.mixup or settings.cutmix:
        raise ValueError("trainer: mixup and cutmix are for data of nst train; mix images in the data set")
    if settings.patience is not None:
        raise ValueError("trainer: patience would be chosen on the test images; choose epochs=")
    if folder is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("folder: several processes need one that all of them name")
    place = Path(tempfile.mkdtemp(prefix="nst-") if folder is None else folder)
    splits = _Images(train), _Images(test)
    terms = _terms(loss, layers, [student] if teacher is None else [student, teacher], epochs)
    about = {
        "student": type(student).__name__, "teacher": None if teacher is None else type(teacher).__name__, "layers": layers,
        "loss": {term.name: {"weight": term.weight, "class": _settings_of(term.loss)} for term in terms},
        "trainer": not_default(asdict(settings), schema=TrainerConfig), "optimizer": _settings_of(optimizer), "lr": lr,
        "schedule": _settings_of(schedule), "images": [len(split) for split in splits], "shape": splits[0].shape, "seed": seed,
    }  # fmt: skip
    about = json.loads(json.dumps(about))
    run, own = Run(place, student), RunFolder(place)
    if (known := own.summary()) is not None:
        if changed := differences(known["config"], about):
            raise ValueError(f"{place} holds another run: {'; '.join(changed)}; give this one a folder of its own")
        run.student()
        return run
    with seeded(seed):
        on_student = [pair.student for term in terms for pair in term.pairs]
        on_teacher = [pair.teacher for term in terms for pair in term.pairs if term.loss.source == "teacher"]
        student_shapes = feature_shapes(student, [*on_student, LOGITS], splits[0].shape, trained=True)
        teacher_shapes = {} if teacher is None else feature_shapes(teacher, [*on_teacher, LOGITS], splits[0].shape)
        distiller = Distiller(student, terms, student_shapes, teacher_shapes)
        distiller.init_memory(len(splits[0]))
    (classes,) = student_shapes[LOGITS]
    with join(settings.device, settings.timeout) as dist:
        check_batches(settings, distiller, len(splits[0]), splits[0].shape, dist.world)
        loaders: list[Loader] = []
        for split, size in zip(splits, (batch_size, settings.eval_batch_size), strict=True):
            split.classes, split.labels = classes, torch.empty(len(split), dtype=torch.int64, device=dist.device)
            rest = (seed, dist.rank, dist.world, dist.device, settings.channels_last)
            loaders.append(Loader(split, size, split is splits[0], *rest, workers=workers))  # pyright: ignore[reportArgumentType]
        batches, held_out = loaders
        make = optimizer or partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=5e-4)
        common = {"schedule": schedule or OneCycle(), "settings": settings, "dist": dist, "seed": seed}
        training = Training(distiller, batches, optimizer=make, **common)
        live = None if teacher is None else LiveTeacher(copy.deepcopy(teacher).to(dist.device), distiller.target_specs)

        def evaluation(split: str, after: Callable[[], object] = bool) -> Metrics:
            return evaluate(student, held_out.epoch(0), dist, settings.precision, after=after)

        lock(own, about, dist, wait=False)
        try:
            names = {"arch": type(student).__name__}
            record = Record(training, place, about, about={"config": about}, metadata=names)
            around = Loop(training, Teacher([live] if live else []), evaluation, record, chance=100 / classes)
            named = about["teacher"] and {"name": about["teacher"]}
            train_and_write(around, {"teacher": named, "seeds": {"run": seed}, "config": about})
        finally:
            own.close()
    distiller.hooks.remove()
    student.eval()
    return run


def _settings_of(thing: Any) -> str | None:
    """A loss, schedule or maker of an optimizer by its class and plain settings, the same in every process."""
    if thing is None or isinstance(thing, partial | type | FunctionType):
        return thing and re.sub(r" at 0x\w+", "", repr(thing))
    plain = {k: v for k, v in vars(thing).items() if k[0] != "_" and isinstance(v, int | float | str | tuple)}
    return f"{type(thing).__name__} {plain}"


def _terms(
    loss: Mapping[str, float | tuple[float, TransferLoss]], layers: Any, networks: Sequence[nn.Module], epochs: int
) -> list[Term]:
    """The terms of a `loss` of `distil`, the cross-entropy first. Raises ValueError for one that cannot be trained so."""
    terms: list[Term] = []
    shipped = {f.stem: yaml.safe_load(f.read_text()).get(f.stem) for f in (CONFIGS / "loss").glob("*.yaml")}
    for name, given in (loss if "ce" in loss else {"ce": 1.0, **loss}).items():
        weight, made = given if isinstance(given, tuple) else (given, None)
        if not 0 <= weight < math.inf:
            raise ValueError(f"loss {name}: weight {weight!r}; a finite number, 0 or more, is needed")
        if made is None:
            if not (node := shipped.get(name)):
                known = ", ".join(sorted(name for name, node in shipped.items() if node))
                raise ValueError(f"loss {name}: there is none of this name; give (weight, loss), or one of {known}")
            node = {key: epochs if value == "${trainer.epochs}" else value for key, value in node.items()}
            made = build.instantiate(f"loss.{name}", {k: v for k, v in node.items() if k not in ("weight", "layers")})
        if len(networks) == 1 and made.source == "teacher":
            raise ValueError(f"loss {name} learns from a teacher, but teacher is None")
        if made.teacher_layer is not None:
            raise ValueError(f"loss {name} needs statistics of the teacher, which only nst train computes")
        pairs = (Pair(LOGITS, LOGITS),) if made.on_logits else pairs_of("layers", layers, networks)
        terms.append(Term(name, made, float(weight), pairs))
    return terms


class _Images(Dataset[Any]):
    """A torch data set as a split of `Loader`: random transforms are functions of (index, view), labels come with the images."""

    num_views, unaugmented = None, 0
    labels: Tensor
    classes: int

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        if isinstance(dataset, DataLoader):
            raise ValueError("train and test are data sets, not loaders: pass each loader's .dataset, and batch_size=")
        if not len(self):
            raise ValueError("a data set is empty")
        image, _ = dataset[0]
        if not isinstance(image, Tensor) or image.dtype != torch.float32 or image.ndim != 3:
            found = f"{list(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"a data set gives images that are {found}; a float32 tensor [C, H, W] is needed")
        self.shape: Any = tuple(image.shape)

    def __len__(self) -> int:
        return len(self.dataset)  # pyright: ignore[reportArgumentType]

    def stream(self, loader: Loader) -> Stream:
        """As `Split.stream`; writes the labels of the images that it yields."""
        layout = torch.channels_last if loader.channels_last else torch.contiguous_format

        def images(order: Tensor, views: Tensor, parts: list[slice]) -> Iterator[Tensor]:
            keys: Any = [list(zip(order[part].tolist(), views[part].tolist(), strict=True)) for part in parts]
            batches = DataLoader(self, batch_sampler=keys, num_workers=loader.workers, generator=torch.Generator())
            for part, (pixels, labels) in zip(parts, batches, strict=True):
                self.labels[order[part]] = labels.to(loader.device)
                yield pixels.to(loader.device, memory_format=layout)

        return images

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        with seeded(step_seed(*key)):
            image, label = self.dataset[key[0]]
        if image.shape != self.shape or image.dtype != torch.float32:
            found = f"{tuple(image.shape)} {image.dtype}"
            raise ValueError(f"image {key[0]} is {found}; {self.shape} float32 is needed, as of the first one")
        if not 0 <= int(label) < self.classes:
            raise ValueError(f"image {key[0]}: its label is {label}; a class from 0 to {self.classes - 1} is needed")
        return image, int(label)
