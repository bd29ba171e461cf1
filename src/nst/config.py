"""The schema of a run: every run-level key, its type and its default.

Components (model, data, the losses) are YAML nodes with a `_target_`; their own signatures are their schema.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class OptimConfig:
    """SGD with momentum and a learning-rate schedule over the whole run."""

    lr: float = 0.1  # for the global batch
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "step"  # step | cosine | onecycle
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])  # step: fractions of the run
    gamma: float = 0.1  # step: factor at each milestone
    warmup: float = 0.0  # fraction of the run over which the rate rises linearly (onecycle: the place of its peak)


@dataclass
class TrainerConfig:
    """How long, on what and how often."""

    epochs: int = 200
    batch_size: int = 128  # global: shared by all ranks
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "fp32"  # fp32 | bf16 (autocast of the student; teacher and losses compute in fp32)
    channels_last: bool = True
    compile: bool | str = False  # auto: where it pays, by measurement, and agrees with eager | true | false
    clip_grad_norm: float | None = None
    sync_bn: bool = False  # with several ranks: BN over the global batch
    accumulate: int = 1  # parts in which a rank takes its share of a batch, one after the other (BN sees each alone)
    workers: int = 4  # processes that decode images (folder data only)
    eval_batch_size: int = 500
    eval_every: int = 1  # epochs
    log_every: int = 50  # steps
    checkpoint_every: str = "1 epoch"  # "1 epoch", or besides that also every "500 steps" or "10 min"
    keep_checkpoints: int = 2
    skip_nonfinite: bool = False  # skip (and count) steps with a non-finite gradient instead of stopping
    profile: bool = False  # write a torch profiler trace of a few steps into the run's folder
    prune_after: int | None = None  # epochs; from then on stop a run that is worse than the median of its like
    heatmaps: bool = True  # draw what some neurons select, into TensorBoard, at the first and the last epoch


@dataclass
class RecipeTrainerConfig:
    """The part of the trainer that belongs to a recipe."""

    epochs: int = 200
    batch_size: int = 128
    precision: str = "fp32"  # fp32 | bf16
    sync_bn: bool = False


@dataclass
class RecipeConfig:
    """How a teacher is trained when its weights are not given: independent of how the student is trained."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: RecipeTrainerConfig = field(default_factory=RecipeTrainerConfig)


@dataclass
class TeacherConfig:
    """The teacher: an architecture and its weights, or the recipe to train them once."""

    model: Any = None  # a node like `model`; null: no teacher
    weights: str | None = None  # .safetensors or a .pt / .pth / .th with tensors only; null: trained once and kept
    mean: list[float] | None = None  # of its inputs; null: as stored with the weights, else the data's
    std: list[float] | None = None
    min_accuracy: float | None = None  # percent on the evaluation images; below it the run stops
    seed: int = 0  # of its training, whatever the student's
    recipe: RecipeConfig = field(default_factory=RecipeConfig)


@dataclass
class KnowledgeConfig:
    """Where the teacher's summaries come from."""

    mode: str = "live"  # live | stored
    views: int | str = 16  # stored: views of each image to hold and to draw from; a number (at most all) or all
    dtype: str = "float16"  # stored: float16 | float32
    path: str | None = None  # stored: the store's folder; null: outputs/<data>/knowledge/<teacher>-<hash>
    allow_large: bool = False  # stored: store summaries as large as the feature itself, too (FitNet, exact Gaussian)


@dataclass
class RunConfig:
    """One run: a student, the data, the losses and, with most losses, a teacher."""

    data: Any = None
    model: Any = None
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    loss: dict[str, Any] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0
    outputs: str = "outputs"  # the folder of all runs
    dry_run: bool = False  # print taps, shapes, parameters and memory, then stop


@dataclass
class EvaluateConfig:
    """What scripts/evaluate.py measures."""

    data: Any = None
    model: Any = None
    weights: str = MISSING
    mean: list[float] | None = None  # of the network's inputs; null: as stored with the weights, else the data's
    std: list[float] | None = None
    split: str = "test"  # train | val | test
    device: str = "auto"
    batch_size: int = 500
    precision: str = "fp32"


@dataclass
class ExportConfig:
    """What scripts/export.py writes."""

    run: str = MISSING  # folder of a finished run
    to: str | None = None  # folder of the files; null: export/ in the run's folder
    formats: list[str] | None = None  # of safetensors, torch, onnx; null: all, onnx where it is installed
    normalize: bool = False  # the torch and onnx files take pixels in 0…1 and normalise them themselves
    images: int = 1000  # test images to verify on, evenly spaced over the split
    repeats: int = 50  # timed calls a batch size; fewer where they take more than 10 s
    device: str = "cpu"  # cpu | cuda: where teacher and student are timed; the files are verified on the CPU
    root: str | None = None  # where the data lies now; null: where the run found it
    licence: str | None = None  # of the weights, for the model card


# Keys that may differ between two starts of the same run: where things lie, how much is shown, and what to do about a
# step that cannot be taken (a run without one is the same either way).
NOT_IDENTITY = (
    "outputs",
    "dry_run",
    "data.root",
    "data.download",
    "data.unpacked",
    "knowledge.path",
    *(
        f"trainer.{key}"
        for key in (
            "device",
            "workers",
            "eval_batch_size",
            "eval_every",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "skip_nonfinite",
            "profile",
            "prune_after",
            "heatmaps",
        )
    ),
)

ConfigStore.instance().store("run_schema", node=RunConfig)
ConfigStore.instance().store("evaluate_schema", node=EvaluateConfig)
ConfigStore.instance().store("export_schema", node=ExportConfig)


def check_values(cfg: RunConfig) -> None:
    """Check what types cannot express.

    Raises:
        ValueError: naming the key, the value found and what would be right.
    """
    for prefix, optim in (("optim", cfg.optim), ("teacher.recipe.optim", cfg.teacher.recipe.optim)):
        _one_of(f"{prefix}.schedule", optim.schedule, ("step", "cosine", "onecycle"))
        _at_least(f"{prefix}.lr", optim.lr, 0)
        _at_least(f"{prefix}.momentum", optim.momentum, 0)
        _at_least(f"{prefix}.weight_decay", optim.weight_decay, 0)
        if optim.nesterov and optim.momentum == 0:
            raise ValueError(f"{prefix}.nesterov=true needs {prefix}.momentum > 0, found 0")
        if not 0 <= optim.warmup < 1:
            raise ValueError(f"{prefix}.warmup={optim.warmup}: a fraction of the run, 0 <= warmup < 1, is needed")
        if any(not 0 < m < 1 for m in optim.milestones):
            raise ValueError(
                f"{prefix}.milestones={list(optim.milestones)}: fractions of the run, each between 0 and 1, "
                "are needed (for epochs 100 and 150 of 200 write [0.5,0.75])"
            )
    _one_of("trainer.device", cfg.trainer.device, ("auto", "cpu", "cuda"))
    if not isinstance(cfg.trainer.compile, bool) and cfg.trainer.compile != "auto":
        raise ValueError(f"trainer.compile={cfg.trainer.compile}: one of auto, true, false is needed")
    for prefix, node in (("trainer", cfg.trainer), ("teacher.recipe.trainer", cfg.teacher.recipe.trainer)):
        _at_least(f"{prefix}.epochs", node.epochs, 1)
        _at_least(f"{prefix}.batch_size", node.batch_size, 1)
        _one_of(f"{prefix}.precision", node.precision, ("fp32", "bf16"))
    for key in ("accumulate", "eval_batch_size", "eval_every", "log_every", "keep_checkpoints"):
        _at_least(f"trainer.{key}", getattr(cfg.trainer, key), 1)
    if cfg.trainer.prune_after is not None:
        _at_least("trainer.prune_after", cfg.trainer.prune_after, 1)
    _at_least("trainer.workers", cfg.trainer.workers, 0)
    parse_every(cfg.trainer.checkpoint_every)
    if cfg.trainer.clip_grad_norm is not None and cfg.trainer.clip_grad_norm <= 0:
        raise ValueError(f"trainer.clip_grad_norm={cfg.trainer.clip_grad_norm}: a positive norm or null is needed")
    if cfg.teacher.min_accuracy is not None and not 0 <= cfg.teacher.min_accuracy <= 100:
        raise ValueError(f"teacher.min_accuracy={cfg.teacher.min_accuracy}: a percentage, 0 to 100, is needed")
    _check_knowledge(cfg.knowledge)
    if cfg.seed < 0 or cfg.teacher.seed < 0:
        raise ValueError(f"seed={cfg.seed}, teacher.seed={cfg.teacher.seed}: seeds must not be negative")


def _check_knowledge(knowledge: KnowledgeConfig) -> None:
    _one_of("knowledge.mode", knowledge.mode, ("live", "stored"))
    _one_of("knowledge.dtype", knowledge.dtype, ("float16", "float32"))
    if knowledge.views != "all" and (not isinstance(knowledge.views, int) or knowledge.views < 1):
        raise ValueError(f"knowledge.views={knowledge.views}: a number of views of each image, at least 1, or all")
    if knowledge.mode == "live" and knowledge != KnowledgeConfig():
        changed = [
            f.name for f in fields(knowledge) if getattr(knowledge, f.name) != getattr(KnowledgeConfig(), f.name)
        ]
        raise ValueError(f"knowledge.{changed[0]} is for stored knowledge only; add knowledge=stored")


def parse_every(text: str) -> tuple[int, float]:
    """`trainer.checkpoint_every` as (steps, seconds), either infinite (a step count of 0: only at epochs)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(epoch|steps?|min)", text.strip())
    if match is None or float(match[1]) <= 0 or (match[2] == "epoch" and match[1] != "1"):
        raise ValueError(f'trainer.checkpoint_every={text}: "1 epoch", "500 steps" or "10 min" is needed')
    number = float(match[1])
    steps = max(1, int(number)) if match[2].startswith("step") else 0
    return steps, 60 * number if match[2] == "min" else float("inf")


def _at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{key}={value}: at least {least} is needed")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value}: one of {', '.join(allowed)} is needed")
