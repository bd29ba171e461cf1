"""The teacher of a run: its weights, its accuracy, and the run that trains it if it has no weights."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from nst import build
from nst.config import (
    UNNAMED,
    CacheConfig,
    EvaluateConfig,
    RunConfig,
    TeacherConfig,
    TrainerConfig,
)
from nst.data.dataset import Dataset
from nst.data.progress import counted
from nst.dist import Dist
from nst.evaluate import evaluate
from nst.files import sha256_of
from nst.models.weights import load_weights
from nst.teacher import LiveTeacher, Normalization, TargetSource, TeacherCache, fold_batch_norm


@dataclass(frozen=True)
class TeacherSide:
    """The source of the teacher's targets, and what is known of the teacher."""

    source: TargetSource
    about: dict[str, Any] | None = None  # name, weights and accuracy of the teacher, for target.json
    live: LiveTeacher | None = None  # the teacher, if it was loaded
    views: Tensor | None = None  # [images, K]: the views that epochs show; None: all
    cache: TeacherCache | None = None


def load_teacher(
    settings: RunConfig, networks: build.Networks, ranks: Dist, data: Dataset, weights: str
) -> tuple[LiveTeacher, dict[str, Any]]:
    """The teacher with its weights, batch norms folded; its name, weights file and number of parameters.

    Raises:
        ValueError: weights of another architecture.
    """
    teacher, images = networks.teacher, Normalization(data.mean, data.std)
    assert teacher is not None
    metadata = load_weights(teacher, weights)
    parameters = build.count_parameters(teacher)
    expects = expected_normalization(settings.teacher, metadata) or images
    teacher.to(ranks.device)
    if settings.trainer.channels_last:
        teacher.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    first = torch.arange(min(8, len(data.test)), device=ranks.device)
    probe = data.test.render(first, torch.full_like(first, data.test.unaugmented))
    teacher.eval()
    if not settings.teacher.batch_statistics:
        fold_batch_norm(teacher, probe, [r.layer for r in networks.distiller.target_specs])
    live = LiveTeacher(teacher, (), images=images, expects=expects, precision=settings.teacher.precision)
    return live, {"name": settings.teacher.model["name"], "weights": weights, "parameters": parameters}


def evaluate_teacher(
    settings: RunConfig, live: LiveTeacher, about: dict[str, Any], ranks: Dist, data: Dataset
) -> dict[str, Any]:
    """`about` with the weights' SHA-256 and the teacher's accuracy, measured on the held-out images if there are any, else on the test images.

    Raises:
        ValueError: an accuracy below the minimum (by default: near chance).
    """
    split = "val" if data.val is not None else "test"
    total = len(data.split(split)) // ranks.world
    title = f"evaluating the teacher {about['name']} on {total:,} images"
    batches = counted(build.loader(settings, ranks, data, split).epoch(0), title, total)
    metrics = evaluate(TeacherOutput(live).eval(), batches, ranks)
    if ranks.main:
        print(f"teacher {about['name']}: top-1 {metrics.top1:.2f} % on the {split} images ({about['weights']})")
    about = {**about, "sha256": sha256_of(about["weights"]), "evaluated_on": split, **asdict(metrics)}
    check_accuracy(settings, data, about)
    return about


def check_accuracy(settings: RunConfig, data: Dataset, about: dict[str, Any]) -> None:
    """Raises ValueError for a teacher below `teacher.min_accuracy`; by default for one that is not better than chance.

    Chance is predicting the most frequent class; the test is a one-sided binomial test at the 1 % level.
    """
    minimum, top1, split = settings.teacher.min_accuracy, about["top1"], about["evaluated_on"]
    if minimum is not None:
        reason = f"teacher.min_accuracy={minimum} is required" if top1 < minimum else None
    else:
        labels = data.split(split).labels
        chance = float(torch.bincount(labels).max() / len(labels))
        hits = round(top1 * len(labels) / 100)
        reason = None
        if binomtest(hits, len(labels), chance, alternative="greater").pvalue > 0.01:
            reason = f"predicting the most frequent class gives {100 * chance:.2f} %, so it may be at chance: "
            if settings.teacher.weights is None and settings.cache.path is None:
                reason += (
                    "trained here, by teacher.train: more epochs (teacher.train.epochs), or another learning rate?"
                )
            else:
                reason += "wrong weights, classes in another order, or another normalisation (teacher.mean, .std)?"
    if reason is not None:
        raise ValueError(
            f"the teacher ({about['weights']}) scores {top1:.2f} % on the {split} images; {reason} "
            "teacher.min_accuracy=0 accepts any teacher"
        )


def teacher_run(settings: RunConfig) -> RunConfig:
    """The run that trains the teacher: its own recipe and seed, independent of the student's.

    From the student's trainer it takes only keys that do not change the result.
    """
    train = settings.teacher.train
    shared = [key.removeprefix("trainer.") for key in UNNAMED if key.startswith("trainer.")]
    trainer = replace(
        TrainerConfig(**{key: getattr(settings.trainer, key) for key in shared}),
        **{key: getattr(train, key) for key in ("epochs", "batch_size", "precision", "sync_bn")},
        profile=False,
    )
    return replace(
        settings,
        model=settings.teacher.model,
        teacher=TeacherConfig(),
        cache=CacheConfig(),
        loss={"ce": {"weight": 1.0, "_target_": "nst.losses.CrossEntropy"}},
        optim=train.optim,
        schedule=train.schedule,
        trainer=trainer,
        seed=settings.teacher.seed,
    )


def expected_normalization(teacher: TeacherConfig | EvaluateConfig, metadata: dict[str, str]) -> Normalization | None:
    """The normalisation that the weights were trained with: as configured, else as stored with them, else unknown."""
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
        self.live.hooks.read()
        return logits
