"""The schema of a run: every run-level key, its type and its default.

Components (model, data, the losses, optimizer, schedule, trackers) are YAML nodes with a `_target_`; their own signatures are
their schema.
"""

import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from nst.precision import PRECISIONS

_INSTALLED = Path(__file__).parent / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"  # in a wheel, in a clone
"""The folder of the configuration files."""


@dataclass
class RecipeConfig:
    """Settings for a data set: defaults of optimizer, schedule and trainer."""

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1  # of SGD, for the global batch
    nesterov: bool = False
    weight_decay: float = 1e-4  # of SGD
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])  # of the step schedule, fractions of the run
    warmup: float = 0.0  # fraction of the run


@dataclass
class TrainerConfig:
    """The training loop: length, batch, precision, checkpoints."""

    epochs: int = 200
    batch_size: int = 128  # global: shared by all ranks
    device: str = "auto"  # auto | cpu | cuda
    precision: str = (
        "fp32"  # fp32 | bf16 | fp16 (autocast of the student; losses in fp32; fp16: CUDA, gradients scaled)
    )
    channels_last: bool = True
    compile: bool | None = None  # compile the step, if its results agree with eager code; null: on CUDA
    clip_grad_norm: float | None = None  # scale gradients down to this norm
    mixup: float = 0.0  # α of mixup, for instance 1.0: teacher and student see averages of two images; 0: off
    cutmix: float = 0.0  # α of cutmix: a box of one image in another; with both, each image gets one of them
    ema: float | None = None  # decay, such as 0.999: a moving average of the student's weights is evaluated and saved
    sync_bn: bool = False  # with several ranks: BN over the global batch
    accumulate: int = 1  # gradient accumulation steps of a batch (BN sees each alone)
    workers: int = 4  # processes that decode images (folder data only)
    eval_batch_size: int = 500
    eval_every: int = 1  # epochs
    log_every: int = 50  # steps
    checkpoint_every: str = "1 epoch"  # "1 epoch"; or in addition every "500 steps" or "10 min"
    keep_checkpoints: int = 2
    skip_nonfinite: bool = False  # skip (and count) steps with a non-finite gradient instead of stopping
    profile: bool = False  # write a torch profiler trace of a few steps into the run's folder
    prune_after: int | None = None  # epochs; from then on stop a run that is below the median of comparable runs
    heatmaps: bool = True  # draw heat maps of some channels, for the trackers, at the first and the last epoch
    timeout: float = 600.0  # seconds after which a rank that does not answer ends the run


@dataclass
class RecipeTrainerConfig:
    """The part of the trainer that belongs to a recipe."""

    epochs: int = 200
    batch_size: int = 128
    precision: str = "fp32"  # fp32 | bf16 | fp16
    sync_bn: bool = False


@dataclass
class TeacherRecipeConfig:
    """How a teacher without weights is trained, independent of the student's training."""

    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    optim: Any = None  # a node like `optim`
    schedule: Any = None  # a node like `schedule`
    trainer: RecipeTrainerConfig = field(default_factory=RecipeTrainerConfig)


@dataclass
class TeacherConfig:
    """The teacher: an architecture and its weights, or the recipe to train them once."""

    model: Any = None  # a node like `model`; null: no teacher
    weights: str | None = None  # .safetensors or a .pt / .pth / .th with tensors only; null: trained once and kept
    mean: list[float] | None = None  # of its inputs; null: as stored with the weights, else the data's
    std: list[float] | None = None
    precision: str = (
        "fp32"  # fp32 | bf16 | fp16 (autocast of its forward pass; summaries and losses in fp32; fp16: CUDA)
    )
    batch_statistics: bool = False  # normalise by the batch's own statistics, as the paper's ImageNet code does
    min_accuracy: float | None = None  # percent on the evaluation images; below it the run stops; null: near chance
    seed: int = 0  # of its training, independent of the student's
    recipe: TeacherRecipeConfig = field(default_factory=TeacherRecipeConfig)


@dataclass
class KnowledgeConfig:
    """Where the teacher's summaries come from."""

    mode: str = "live"  # live | stored
    views: int | str = 16  # stored: views of each image in the cache; a number, or all
    dtype: str = "float16"  # stored: float16 | float32
    path: str | None = None  # stored: the cache's folder; null: outputs/<data>/knowledge/<teacher>-<hash>
    residence: str = (
        "auto"  # stored: where training reads it from: device | host (memory) | disk; auto: the first with room
    )
    allow_large: bool | None = None  # stored: cache also summaries as large as the feature; null: where that is cheaper


@dataclass
class RunConfig:
    """One run: a student, the data, the losses and, with most losses, a teacher."""

    data: Any = None
    model: Any = None
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    loss: dict[str, Any] = field(default_factory=dict)
    layers: Any = "last"  # which layers of teacher and student are compared, for every loss without its own layers
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    optim: Any = None
    schedule: Any = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracker: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    outputs: str = "outputs"  # the folder of all runs
    dry_run: bool = False  # print layers, shapes, parameters and memory, then stop


@dataclass
class EvaluateConfig:
    """What `nst evaluate` measures: a finished run's student, or any weights."""

    run: str | None = None  # folder of a finished run: its network, weights, data and normalisation
    root: str | None = None  # with `run`: folder of its data; null: as in the run
    allow: list[str] = field(default_factory=list)  # with `run`: as in ExportConfig
    data: Any = None  # null: the run's
    model: Any = None
    weights: str | None = None
    mean: list[float] | None = None  # of the network's inputs; null: as stored with the weights, else the data's
    std: list[float] | None = None
    split: str = "test"  # train | val | test
    device: str = "auto"
    batch_size: int = 500
    precision: str = "fp32"


@dataclass
class ExportConfig:
    """What `nst export` writes."""

    run: str = MISSING  # folder of a finished run
    to: str | None = None  # folder of the files; null: export/ in the run's folder
    formats: list[str] | None = None  # of safetensors, torch, onnx; null: all, onnx where it is installed
    normalize: bool = False  # the torch and onnx files take pixels in 0…1 and normalise them themselves
    images: int = 1000  # test images to verify on, evenly spaced over the split
    repeats: int = 50  # timed calls a batch size; fewer where they take more than 10 s
    device: str = "cpu"  # cpu | cuda: where teacher and student are timed; the files are verified on the CPU
    root: str | None = None  # folder of the data; null: as in the run
    licence: str | None = None  # of the weights, for the model card
    allow: list[str] = field(
        default_factory=list
    )  # networks and data sets outside this project that the run may name: [mynet.Tiny]


# Keys that may differ between two starts of the same run: paths, logging, and how to handle a non-finite step (a run
# without one is not affected). Recipes act through the keys that refer to them.
NOT_IDENTITY = (
    "outputs",
    "dry_run",
    "recipe",
    "layers",
    "teacher.recipe.recipe",
    "tracker",
    "data.root",
    "data.download",
    "data.unpacked",
    "data.max_pixels",
    "knowledge.path",
    "knowledge.residence",
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
            "timeout",
        )
    ),
)

ConfigStore.instance().store("run_schema", node=RunConfig)
ConfigStore.instance().store("evaluate_schema", node=EvaluateConfig)
ConfigStore.instance().store("export_schema", node=ExportConfig)


def check_values(cfg: RunConfig) -> None:
    """Check what types cannot express.

    Raises:
        ValueError: names the key, its value and a correct one.
    """
    check_numbers(cfg, "")
    _one_of("trainer.device", cfg.trainer.device, ("auto", "cpu", "cuda"))
    for prefix, node in (("trainer", cfg.trainer), ("teacher.recipe.trainer", cfg.teacher.recipe.trainer)):
        _at_least(f"{prefix}.epochs", node.epochs, 1)
        _at_least(f"{prefix}.batch_size", node.batch_size, 1)
        _one_of(f"{prefix}.precision", node.precision, PRECISIONS)
    for key in ("accumulate", "eval_batch_size", "eval_every", "log_every", "keep_checkpoints"):
        _at_least(f"trainer.{key}", getattr(cfg.trainer, key), 1)
    if cfg.trainer.prune_after is not None:
        _at_least("trainer.prune_after", cfg.trainer.prune_after, 1)
    _at_least("trainer.workers", cfg.trainer.workers, 0)
    _at_least("trainer.timeout", cfg.trainer.timeout, 1)
    parse_every(cfg.trainer.checkpoint_every)
    if cfg.trainer.clip_grad_norm is not None and cfg.trainer.clip_grad_norm <= 0:
        raise ValueError(f"trainer.clip_grad_norm={cfg.trainer.clip_grad_norm}: a positive norm or null is needed")
    for key in ("mixup", "cutmix"):
        _at_least(f"trainer.{key}", getattr(cfg.trainer, key), 0)
    if cfg.trainer.ema is not None and not 0 < cfg.trainer.ema < 1:
        raise ValueError(f"trainer.ema={cfg.trainer.ema}: a decay above 0 and below 1, or null, is needed")
    _check_teacher(cfg.teacher)
    _check_knowledge(cfg.knowledge)
    if cfg.teacher.batch_statistics and cfg.knowledge.mode == "stored":
        raise ValueError(
            "teacher.batch_statistics=true: the teacher's output for an image then depends on its batch, so it cannot be "
            "cached; use knowledge=live"
        )
    for key, seed in (("seed", cfg.seed), ("teacher.seed", cfg.teacher.seed)):
        if not 0 <= seed < 2**63:
            raise ValueError(f"{key}={seed}: a whole number from 0 to 2^63 - 1 is needed")


def check_numbers(node: Any, key: str) -> None:
    """Raises ValueError for the first number in nested settings that float32 cannot hold: NaN, infinite, too large or too small."""
    if isinstance(node, float) and node and not _SMALLEST <= abs(node) <= _LARGEST:
        raise ValueError(f"{key}={node}: a finite number that float32 can hold is needed")
    if isinstance(node, int) and not isinstance(node, bool) and abs(node) >= 2**63 and not key.endswith("seed"):
        raise ValueError(f"{key}={node}: a number below 2^63 is needed")
    if is_dataclass(node):
        node = {f.name: getattr(node, f.name) for f in fields(node)}
    if isinstance(node, dict):
        for name, value in node.items():
            check_numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            check_numbers(value, f"{key}[{i}]")


_SMALLEST, _LARGEST = 1.1754943508222875e-38, 3.4028234663852886e38  # normal float32


def _check_teacher(teacher: TeacherConfig) -> None:
    _one_of("teacher.precision", teacher.precision, PRECISIONS)
    if teacher.min_accuracy is not None and not 0 <= teacher.min_accuracy <= 100:
        raise ValueError(f"teacher.min_accuracy={teacher.min_accuracy}: a percentage, 0 to 100, is needed")
    if (teacher.mean is None) != (teacher.std is None):
        missing, given = ("std", "mean") if teacher.std is None else ("mean", "std")
        raise ValueError(f"teacher.{given} is given without teacher.{missing}: give both, or neither")
    if teacher.std is not None and min(teacher.std, default=0) <= 0:
        raise ValueError(f"teacher.std={teacher.std}: each value must be above 0")


def check_channels(prefix: str, node: TeacherConfig | EvaluateConfig, channels: int) -> None:
    """Raises ValueError if a mean or standard deviation does not have one value per channel."""
    for key in ("mean", "std"):
        values = getattr(node, key)
        if values is not None and len(values) != channels:
            raise ValueError(f"{prefix}{key}={values}: {len(values)} values, but the images have {channels} channels")


def _check_knowledge(knowledge: KnowledgeConfig) -> None:
    _one_of("knowledge.mode", knowledge.mode, ("live", "stored"))
    _one_of("knowledge.dtype", knowledge.dtype, ("float16", "float32"))
    _one_of("knowledge.residence", knowledge.residence, ("auto", "device", "host", "disk"))
    if knowledge.views != "all" and (not isinstance(knowledge.views, int) or knowledge.views < 1):
        raise ValueError(f"knowledge.views={knowledge.views}: a number of views of each image, at least 1, or all")
    if knowledge.mode == "live" and knowledge != KnowledgeConfig():
        changed = [
            f.name for f in fields(knowledge) if getattr(knowledge, f.name) != getattr(KnowledgeConfig(), f.name)
        ]
        raise ValueError(f"knowledge.{changed[0]} is for the teacher cache only; add knowledge=stored")


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """How two nested settings differ, one line a field: `key: old value there, new value now`; a missing key counts as None."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if old == new else [f"{prefix}: {old!r} there, {new!r} now"]


def parse_every(text: str) -> tuple[int, float]:
    """`trainer.checkpoint_every` as (steps, seconds), either infinite (a step count of 0: only at epochs)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(epoch|steps?|min)", text.strip())
    if match is None or float(match[1]) <= 0 or (match[2] == "epoch" and match[1] != "1"):
        raise ValueError(f'trainer.checkpoint_every={text}: "1 epoch", "500 steps" or "10 min" is needed')
    number = float(match[1])
    if number > 1e9:
        raise ValueError(f"trainer.checkpoint_every={text}: a number up to 1e9 is needed")
    steps = max(1, int(number)) if match[2].startswith("step") else 0
    return steps, 60 * number if match[2] == "min" else float("inf")


def _at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{key}={value}: at least {least} is needed")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value}: one of {', '.join(allowed)} is needed")
