"""Runs from Python: what `nst train` and `nst runs` do, and the same loop for objects of one's own.

    run = nst.train("model=resnet20", "loss=nst_poly", "trainer.epochs=5")
    run.metrics.plot("epoch", "top1")
    student = run.student()

In place of exit statuses there are exceptions: ValueError for a setting or a file, FloatingPointError for a loss that is not
finite, `nst.Interrupted` for a run that was stopped and saved.
"""

import copy
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nst import build
from nst.cli.compose import composed
from nst.cli.train import dry_run
from nst.config import CONFIGS, TrainerConfig, check_ranges, differences
from nst.data.batch import Batch, Loader
from nst.dist import join
from nst.distiller import Distiller, Term, seeded
from nst.evaluate import Metrics, evaluate
from nst.export.finished import finished_run
from nst.export.formats import Rescaled
from nst.files import write_whole
from nst.layers import LOGITS, Pair, feature_shapes, pairs_of
from nst.loop import Loop, Training
from nst.losses import CrossEntropy, TransferLoss
from nst.models.weights import load_weights, save_weights
from nst.optim import MakeOptimizer, OneCycle, Schedule
from nst.run import execute
from nst.storage.folder import METRICS, STUDENT, SUMMARY, RunFolder, read_json, run_folder
from nst.storage.record import Record
from nst.storage.trackers import RunInfo
from nst.tables.frame import read_frame
from nst.teacher import LiveTeacher, Teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run by its folder."""

    folder: Path
    network: nn.Module | None = None  # the trained student of `distil`

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
        """The trained network in evaluation mode on the CPU: images `[B, C, H, W]` → logits.

        Its images are pixels in 0 … 1, which it normalises itself; the student of `distil` takes images as its data set gives them.

        Args:
            weights: "last" or "best": of the last epoch, or of the best one.

        Raises:
            ValueError: the run is not finished, or its files are damaged.
        """
        if self.network is not None:
            load_weights(self.network, self.folder / f"{'student' if weights == 'last' else weights}.safetensors")
            return self.network.eval()
        run = finished_run(self.folder, weights=weights)
        mean, std = (torch.tensor(run.settings.data[key], dtype=torch.float32) for key in ("mean", "std"))
        return Rescaled(run.student(), 1 / std, -mean / std).eval()


def train(*overrides: str) -> Run:
    """Train as `nst train` does: the same folder, the same result; a finished run is not repeated, an interrupted one continues.

    Args:
        overrides: such as "model=resnet20", "loss=[kd,nst_poly]", "trainer.epochs=5".

    Raises:
        ValueError: a setting or file that makes the run impossible; names the nearest key.
        FloatingPointError: the loss was not finite; names the step, the terms and the last good checkpoint.
        Interrupted: stopped by a signal, such as a notebook's stop button, and saved; the same call continues.
    """
    settings = build.settings(composed(overrides))
    folder = run_folder(asdict(settings))
    if settings.dry_run:
        dry_run(settings)
    else:
        with join(settings.trainer.device, settings.trainer.timeout) as dist:
            execute(settings, dist)
    return Run(folder)


def runs(outputs: str | PathLike[str] = "outputs") -> pd.DataFrame:
    """All runs below a folder, a row each; see `nst.tables.frame.read_run` for the columns. Damaged runs are logged."""
    damaged: list[str] = []
    frame = read_frame(sorted(file.parent for file in Path(outputs).glob("*/*/*/*/config.json")), damaged)
    for line in damaged:
        log.warning("%s", line)
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

    Images are whatever the data sets give: both networks see the same normalised float tensors. Their random transforms are
    seeded by (seed, epoch, image), so the result does not depend on `workers`, and a stopped run continues exactly.

    Args:
        student, teacher: images `[B, C, H, W]` → logits `[B, classes]`; trained in place, and left as it is. None: labels alone.
        loss: of each term its weight λ: `{"kd": 16, "nst_poly": 50}` are the losses of `loss=NAME` with their defaults,
            `{"mine": (2.0, MyLoss())}` is one of your own. The cross-entropy is added, with weight 1 if there is no "ce".
        train, test: give (image, label): a float32 tensor `[C, H, W]`, of one size in each, and a class number.
        layers: compared by all losses on features: a layer of both networks, or a list of `{"teacher": …, "student": …}`.
        lr, optimizer, schedule: by default SGD with momentum 0.9, weight decay 5e-4 and one cycle of the rate; `optimizer` makes one from
            parameters, such as `partial(torch.optim.AdamW, lr=1e-3)`.
        trainer: everything else of the loop; `epochs` and `batch_size` replace its own.
        folder: of the run, where the same call continues or returns the result; None: a temporary one.

    Raises:
        ValueError: networks, losses or images that do not fit together; a folder of another run.
        FloatingPointError, Interrupted: see `train`.
    """
    for key, number in (("epochs", epochs), ("batch_size", batch_size), ("seed", seed)):
        if type(number) is not int or number < (key != "seed"):
            raise ValueError(f"{key}={number!r}: a whole number{', at least 1,' if key != 'seed' else ''} is needed")
    settings = replace(trainer or TrainerConfig(), epochs=epochs, batch_size=batch_size, heatmaps=False)
    check_ranges(settings, "trainer.")
    if not len(train) or not len(test):  # pyright: ignore[reportArgumentType]
        raise ValueError(f"{'test' if len(train) else 'train'}: the data set is empty")  # pyright: ignore[reportArgumentType]
    place = Path(tempfile.mkdtemp(prefix="nst-") if folder is None else folder)
    networks = [student] if teacher is None else [student, teacher]
    shape = _image_shape(train)
    terms = list(_terms(loss, layers, networks, epochs))
    _check(terms, teacher, settings)
    with seeded(seed):
        student_shapes = feature_shapes(
            student, [p.student for t in terms for p in t.pairs] + [LOGITS], shape, trained=True
        )
        taught = [p.teacher for t in terms for p in t.pairs if t.loss.source == "teacher"]
        teacher_shapes = {} if teacher is None else feature_shapes(teacher, [*taught, LOGITS], shape)
        distiller = Distiller(student, terms, student_shapes, teacher_shapes)
        for module in distiller.losses.values():
            assert isinstance(module, TransferLoss)
            module.init_memory(len(train))  # pyright: ignore[reportArgumentType]
    about = {
        "student": type(student).__name__, "teacher": None if teacher is None else type(teacher).__name__, "layers": layers,
        "loss": {term.name: term.weight for term in terms}, "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed,
    }  # fmt: skip
    run, lock, classes = Run(place, student), RunFolder(place), student_shapes[LOGITS][0]
    if (known := lock.summary()) is not None:
        if changed := differences(known["config"], about):
            raise ValueError(f"{place} holds another run: {'; '.join(changed)}; give this one a folder of its own")
        run.student()
        return run
    with join(settings.device, settings.timeout) as dist:

        def loader(dataset: Dataset[Any], size: int, train: bool) -> Loader:
            images: Any = _Seeded(dataset, _image_shape(dataset), classes)
            here = (dist.rank, dist.world, dist.device)
            return _Images(images, size, train, seed, *here, settings.channels_last, workers=workers)

        training = Training(
            distiller, loader(train, batch_size, True),
            optimizer=optimizer or partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=5e-4),
            schedule=schedule or OneCycle(), settings=settings, dist=dist, seed=seed,
        )  # fmt: skip
        live = Teacher()
        if teacher is not None:
            live = Teacher([LiveTeacher(copy.deepcopy(teacher).to(dist.device), distiller.target_specs)])
        if dist.main:
            lock.open(about)
        try:
            with Record(training, RunInfo(place, place.name, "distil", about), about={"config": about}) as record:
                chance = 100 / classes
                held_out = loader(test, settings.eval_batch_size, False)

                def evaluation(split: str, after: Callable[[], object] = bool) -> Metrics:
                    return evaluate(student, held_out.epoch(0), dist, settings.precision, after=after)

                last = Loop(training, live, evaluation, record, chance=chance).run()
            if training.average is not None:
                training.average.adopt()
            if dist.main:
                save_weights(place / STUDENT, student, {"arch": type(student).__name__})
                best = {"top1": training.progress.best, "epoch": training.progress.best_epoch}
                summary = {
                    "finished": True, "folder": str(place), "test": asdict(last), "last": asdict(last), "best": best,
                    "steps": training.progress.step, "seconds": round(training.progress.seconds, 2), "config": about,
                }  # fmt: skip
                write_whole(place / SUMMARY, json.dumps(summary, indent=1).encode())
            dist.barrier()
        finally:
            lock.close()
    distiller.hooks.remove()
    student.eval()
    return run


def _check(terms: Sequence[Term], teacher: nn.Module | None, settings: TrainerConfig) -> None:
    """Raises ValueError for what `distil` cannot train: terms without their teacher or its statistics, mixed images."""
    if teacher is None and (taught := [term.name for term in terms if term.loss.source == "teacher"]):
        raise ValueError(f"loss {taught[0]} learns from a teacher, but teacher is None")
    if settings.mixup or settings.cutmix:
        raise ValueError("trainer: mixup and cutmix are for data of nst train; mix images in the data set")
    for term in terms:
        if term.loss.teacher_layer is not None:
            raise ValueError(
                f"loss {term.name} needs statistics of the teacher over all images, which only nst train computes"
            )


def _image_shape(dataset: Dataset[Any]) -> tuple[int, int, int]:
    """`(C, H, W)` of a data set's first image. Raises ValueError if it does not give (image, label) as `distil` needs it."""
    if not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"the data set is a {type(dataset).__name__}; one with a length and an item for each index is needed"
        )
    image, _ = first if isinstance(first := dataset[0], tuple | list) and len(first) == 2 else (first, 0)
    if not isinstance(image, Tensor) or image.dtype != torch.float32 or image.ndim != 3:
        kind = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"the data set gives {kind}; (image, label) with a float32 tensor [C, H, W] is needed: add v2.ToImage and v2.ToDtype"
        )
    channels, height, width = image.shape
    return channels, height, width


def _terms(
    loss: Mapping[str, float | tuple[float, TransferLoss]], layers: Any, networks: Sequence[nn.Module], epochs: int
) -> Iterator[Term]:
    """The terms of a `loss` of `distil`, the cross-entropy first."""
    if not isinstance(loss, Mapping):
        raise ValueError(f"loss={loss!r}: a weight by name is needed, such as {{'kd': 16}}")
    for name, given in (loss if "ce" in loss else {"ce": 1.0, **loss}).items():
        if isinstance(given, tuple) and (len(given) != 2 or not isinstance(given[1], TransferLoss)):
            raise ValueError(f"loss {name}: {given!r}; (weight, object of a TransferLoss) is needed")
        if "." in str(name):
            raise ValueError(f"loss {name}: a name without dots is needed")
        number = given[0] if isinstance(given, tuple) else given
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
            raise ValueError(f"loss {name}: weight {number!r}; a finite number, 0 or more, is needed")
        if isinstance(given, tuple):
            weight, made = given
        elif name == "ce":
            weight, made = given, CrossEntropy()
        else:
            file = CONFIGS / "loss" / f"{name}.yaml"
            node = yaml.safe_load(file.read_text()).get(name) if file.is_file() else None
            if node is None:
                known = sorted(path.stem for path in file.parent.glob("*.yaml") if "_target_" in path.read_text())
                raise ValueError(
                    f"loss {name}: there is none of this name; give (weight, loss object), or one of {', '.join(known)}"
                )
            options = {
                k: epochs if v == "${trainer.epochs}" else v for k, v in node.items() if k not in ("weight", "layers")
            }
            weight, made = given, build.instantiate(f"loss.{name}", options)
        pairs = (Pair(LOGITS, LOGITS),) if made.on_logits else pairs_of("layers", layers, networks)
        yield Term(name, made, float(weight), pairs)


class _Images(Loader):
    """One rank's loader of a torch data set of (image, label)."""

    def batches(self, order: Tensor, views: Tensor, parts: Any) -> Iterator[Batch]:
        """As `Loader.batches`; the labels come with the images."""
        parts, device = list(parts), self.labels.device
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        keys = [list(zip(order[part].tolist(), views[part].tolist(), strict=True)) for part in parts]
        loader = DataLoader(self.split, batch_sampler=keys, num_workers=self.workers, generator=torch.Generator())  # pyright: ignore[reportArgumentType]
        for part, (images, labels) in zip(parts, loader, strict=True):
            images = images.to(device, memory_format=layout)
            yield Batch(images, labels.to(device), order[part].to(device), views[part].to(device))


class _Seeded(Dataset[Any]):
    """A data set whose random transforms are functions of (index, view); to `Loader` it is a split."""

    labels, num_views, unaugmented = torch.empty(0), None, 0

    def __init__(self, dataset: Dataset[Any], shape: tuple[int, int, int], classes: int) -> None:
        self.dataset, self.shape, self.classes = dataset, shape, classes

    def __len__(self) -> int:
        return len(self.dataset)  # pyright: ignore[reportArgumentType]

    def stream(self, *_: Any, **__: Any) -> None:
        """`_Images` needs none."""

    def __getitem__(self, key: tuple[int, int]) -> Any:
        with seeded(int(np.random.SeedSequence(key).generate_state(1)[0])):
            image, label = self.dataset[key[0]]
        if not isinstance(image, Tensor) or (image.shape, image.dtype) != (self.shape, torch.float32):
            found = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"image {key[0]} is {found}; {self.shape} float32 is needed, as of the first one")
        plain = isinstance(label, np.generic) or (isinstance(label, Tensor) and label.numel() == 1)
        number = label.item() if plain else label
        if type(number) is not int or not 0 <= number < self.classes:
            raise ValueError(
                f"the label of image {key[0]} is {label!r}; a class number from 0 to {self.classes - 1} is needed"
            )
        return image, number
