"""The schema of a run: every run-level key, its type, default and range, and whether it is part of a run's name.

Components (model, data, the losses, optimizer, schedule, trackers) are YAML nodes with a `_target_`; their own signatures are
their schema.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from math import inf
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

PRECISIONS = ("fp32", "bf16", "fp16")
_INSTALLED = Path(__file__).parent / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"  # in a wheel, in a clone


def setting(default: Any, *, key: bool = True, unnamed: tuple[str, ...] = (), **limits: Any) -> Any:
    """A field of the schema.

    Args:
        default: of the key; it must never change where `key` is true: a new default is a new key.
        key: whether the value is part of the run's name (see `nst.storage.folder.run_key`). False: it does not change the result,
            or acts through another key.
        unnamed: arguments of the component in this key that are no part of the name.
        limits: `least`, `above`, `most`, `below` of a number (null is always allowed where the type allows it), or `one_of` texts.
    """
    metadata = {"key": key, "unnamed": unnamed, **limits}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


START = ("weights", "weights_key", "drop", "freeze")
"""Keys of any `model` that are no arguments of its constructor: a file and the state in it, parts that start anew, that stay fixed."""


@dataclass
class RecipeConfig:
    """Settings for a data set: defaults of optimizer, schedule and trainer."""

    epochs: int = setting(200, least=1)
    batch_size: int = setting(128, least=1)
    lr: float = setting(0.1, key=False)  # of SGD, for the global batch
    nesterov: bool = setting(False, key=False)
    weight_decay: float = setting(1e-4, key=False)  # of SGD
    milestones: list[float] = setting([0.5, 0.75], key=False)  # of the step schedule, fractions of the run
    warmup: float = setting(0.0, key=False)  # fraction of the run


@dataclass
class TrainerConfig:
    """The training loop: length, batch, precision, checkpoints."""

    epochs: int = setting(200, least=1)
    steps: int | None = setting(None, least=1)  # length of the run in steps; null: by epochs
    patience: int | None = setting(None, least=1)  # evaluations of data.validation without a better top-1, then stop
    batch_size: int = setting(128, least=1)  # global: shared by all ranks
    device: str = setting("auto", one_of=("auto", "cpu", "cuda"), key=False)
    precision: str = setting("fp32", one_of=PRECISIONS)  # autocast of the student; losses in fp32; fp16: CUDA
    channels_last: bool = True
    compile: bool | None = None  # compile the step, if its results agree with eager code; null: on CUDA
    clip_grad_norm: float | None = setting(None, above=0)  # scale gradients down to this norm
    mixup: float = setting(0.0, least=0)  # α of mixup, for instance 1.0: averages of two images; 0: off
    cutmix: float = setting(0.0, least=0)  # α of cutmix: a box of one image in another; with both, each image gets one
    ema: float | None = setting(None, above=0, below=1)  # decay of averaged weights (0.999, say), evaluated and saved
    sync_bn: bool = False  # with several ranks on GPUs: BN over the global batch
    accumulate: int = setting(1, least=1)  # gradient accumulation steps of a batch (BN sees each alone)
    threads: int | None = setting(None, least=1, key=False)  # of a CPU's operations; null: see docs/cost.md
    workers: int = setting(4, least=0, key=False)  # processes that decode images (folder data only)
    eval_batch_size: int = setting(500, least=1, key=False)
    eval_every: int = setting(1, least=1, key=False)  # epochs
    log_every: int = setting(50, least=1, key=False)  # steps
    checkpoint_every: str = setting("1 epoch", key=False)  # "1 epoch"; or in addition every "500 steps" or "10 min"
    keep_checkpoints: int = setting(2, least=1, key=False)
    profile: bool = setting(False, key=False)  # write a torch profiler trace of a few steps into the run's folder
    timeout: float = setting(600.0, least=1, key=False)  # seconds after which a rank that does not answer ends the run


@dataclass
class TeacherTrainConfig(RecipeConfig):
    """How a teacher without weights is trained, independent of the student's training: the recipe of the data set and more."""

    precision: str = setting("fp32", one_of=PRECISIONS)
    sync_bn: bool = False
    optim: Any = None  # a node like `optim`
    schedule: Any = None  # a node like `schedule`


@dataclass
class TeacherConfig:
    """The teacher: an architecture and its weights, or how to train them once."""

    model: Any = None  # a node like `model`; null: no teacher
    weights: str | None = None  # .safetensors or a .pt / .pth / .th with tensors only; null: trained once and kept
    weights_key: str | None = None  # the state to load where the file holds several, such as state_dict_ema
    mean: list[float] | None = None  # of its inputs; null: as its weights say, else its library, else the data's
    std: list[float] | None = setting(None, above=0)
    input_size: int | None = setting(None, least=1)  # at which it looks at the images; null: as its weights say
    precision: str = setting("fp32", one_of=PRECISIONS)  # autocast of its forward pass; targets in fp32; fp16: CUDA
    batch_statistics: bool = False  # normalise by the batch's own statistics, as the paper's ImageNet code does
    min_accuracy: float | None = setting(None, least=0, most=100)  # percent; below it the run stops; null: near chance
    seed: int = setting(0, least=0, below=2**63)  # of its training, independent of the student's
    train: TeacherTrainConfig = field(default_factory=TeacherTrainConfig)


@dataclass
class CacheConfig:
    """The teacher cache: its targets, computed once and kept on disk."""

    views: int | str = 0  # of each image: a number (16, say), or all; 0: no cache, the teacher runs beside the student
    dtype: str = setting("float16", one_of=("float16", "float32"))
    path: str | None = setting(None, key=False)  # its folder; null: outputs/<data>/cache/<teacher>-<hash>
    large: bool = False  # cache also targets as large as the teacher's feature; else they are computed live


@dataclass
class RunConfig:
    """One run: a student, the data, the losses and, with most losses, a teacher."""

    data: Any = setting(None, unnamed=("root", "path", "cache_dir", "download"))
    model: Any = None
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    loss: dict[str, Any] = field(default_factory=dict)
    layers: Any = setting("last", key=False)  # compared layers, for every loss without its own
    recipe: RecipeConfig = field(default_factory=RecipeConfig, metadata={"key": False})
    optim: Any = None
    schedule: Any = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracker: dict[str, Any] = setting({}, key=False)
    metric: dict[str, Any] = setting({}, key=False)  # functions of logits and labels, evaluated beside top-1 and top-5
    seed: int = setting(0, least=0, below=2**63)
    outputs: str = setting("outputs", key=False)  # the folder of all runs
    dry_run: bool = setting(False, key=False)  # print layers, shapes, parameters and memory, then stop


@dataclass
class EvaluateConfig:
    """What `nst evaluate` measures: a finished run's student, or any weights."""

    run: str | None = None  # folder of a finished run: its network, weights, data and normalisation
    root: str | None = None  # with `run`: folder of its data; null: as in the run
    data: Any = None  # of the images; null: the run's
    model: Any = None  # without `run`: a network, with weights and data
    weights: str | None = None  # a file; with `run`: last or best, its epoch
    weights_key: str | None = None  # the state to load where the file holds several, such as state_dict_ema
    to: str | None = None  # folder of evaluation.json; null: the run's; without a run nothing is written
    mean: list[float] | None = None  # of the network's inputs; null: as stored with the weights, else the data's
    std: list[float] | None = setting(None, above=0)
    split: str = setting("test", one_of=("train", "val", "test"))
    device: str = setting("auto", one_of=("auto", "cpu", "cuda"))
    batch_size: int = setting(500, least=1)
    precision: str = setting("fp32", one_of=("fp32", "bf16"))


@dataclass
class PredictConfig:
    """What `nst predict` classifies, and how it prints."""

    model: str = MISSING  # folder of a finished run, or of an export (with model.json and student.safetensors)
    images: str = MISSING  # a folder of images of any size, or one file
    format: str = setting("csv", one_of=("csv", "json"))  # a line for each image and class; json: for each image
    top: int = setting(5, least=1)  # classes of each image, the most probable first
    batch_size: int = setting(64, least=1)
    device: str = setting("cpu", one_of=("cpu", "cuda"))


@dataclass
class ExportConfig:
    """What `nst export` writes."""

    run: str = MISSING  # folder of a finished run (required)
    weights: str = setting("last", one_of=("last", "best"))  # of the last or of the best epoch
    to: str | None = None  # folder of the files; null: export/ in the run's folder
    formats: list[str] | None = None  # safetensors, torch, onnx, onnx_int8; null: the first three, onnx if installed
    normalize: bool = False  # the torch and onnx files take pixels in 0…1 and normalise them themselves
    images: int = setting(1000, least=1)  # test images to verify on, evenly spaced over the split
    repeats: int = setting(50, least=1)  # timed calls a batch size; fewer where they take more than 10 s
    device: str = setting("cpu", one_of=("cpu", "cuda"))  # where both networks are timed; files are verified on the CPU
    root: str | None = None  # folder of the data; null: as in the run
    licence: str | None = None  # of the weights, for the model card
    calibration: int = setting(512, least=1)  # training images that onnx_int8 takes the ranges of its activations from
    int8_exclude: list[str] = setting([])  # layers that onnx_int8 keeps in 32 bits, by their names: [conv1,fc]


ConfigStore.instance().store("run_schema", node=RunConfig)
ConfigStore.instance().store("evaluate_schema", node=EvaluateConfig)
ConfigStore.instance().store("export_schema", node=ExportConfig)
ConfigStore.instance().store("predict", node=PredictConfig)


def _recipe(name: str, *, _parent_: DictConfig) -> Any:
    """`${recipe:lr}` in an optimizer or schedule: the student's `recipe.lr`; in `teacher.train` its own `lr`."""
    around: Any = _parent_._get_parent()
    return (around.recipe if "recipe" in around else around)[name]


OmegaConf.register_new_resolver("recipe", _recipe, replace=True)


RENAMED = {
    "taps": "the compared layers are now `layers`, of one loss `loss.NAME.layers`",
    "allow": "it is gone: code of the working folder may be named by a run, no other",
    "knowledge": "it is now cache: cache.views=16 (0, the default: a live teacher), cache.dtype, cache.path, cache.large",
    "teacher.recipe": "it is now teacher.train, in one level: teacher.train.epochs, .lr, .precision, .optim, .schedule",
    "trainer.skip_nonfinite": "it is gone: a non-finite loss stops the run at that step",
    "trainer.heatmaps": "it is gone: the page of a table has heat maps of its networks",
    "trainer.prune_after": "it is gone; a sampler of hydra/sweeper=search chooses what to try",
}
"""Keys of 0.2 and what they are now."""


def renamed(key: str) -> str | None:
    """What became of a dotted key (or a group) of an earlier version; None if it was never one."""
    key = key.lstrip("+~").partition("=")[0].rpartition("@")[2]
    if key.endswith(".taps"):
        return f"{key}: it is now {key.removesuffix('taps')}layers"
    while key and key not in RENAMED:
        key = key.rpartition(".")[0]
    return f"{key}: {RENAMED[key]}" if key else None


def check_values(run: RunConfig) -> None:
    """Raises ValueError for what types cannot express; names the key, its value and a correct one."""
    check_ranges(run, "")
    parse_every(run.trainer.checkpoint_every)
    views = run.cache.views
    if views != "all" and (not isinstance(views, int) or views < 0):
        raise ValueError(f"cache.views={views}: a number of views of each image, or all, is needed; 0: no cache")
    if not views and (changed := [f.name for f in fields(CacheConfig) if getattr(run.cache, f.name) != f.default]):
        raise ValueError(f"cache.{changed[0]} is for the teacher cache only; add cache.views=16")
    if views and run.teacher.batch_statistics:
        raise ValueError("teacher.batch_statistics=true: such outputs cannot be cached; use cache.views=0")
    if views and (run.trainer.mixup or run.trainer.cutmix):
        raise ValueError("trainer.mixup, trainer.cutmix: a teacher cache has no mixed images; use cache.views=0")


LIMITS = {"least": ("at least", ge), "above": ("above", gt), "most": ("at most", le), "below": ("below", lt)}


def check_ranges(node: Any, prefix: str) -> None:
    """Raises ValueError for the first value in nested settings outside of its field's range or choices, or of float32 (int64)."""
    if is_dataclass(node):
        items = [(f"{prefix}{f.name}", getattr(node, f.name), f.metadata) for f in fields(node)]
    elif isinstance(node, dict):
        items = [(f"{prefix}{name}", value, {}) for name, value in node.items()]
    else:
        items = [(f"{prefix[:-1]}[{i}]", value, {}) for i, value in enumerate(node if isinstance(node, list) else ())]
    for key, value, metadata in items:
        if value is not None and (choices := metadata.get("one_of")) and value not in choices:
            raise ValueError(f"{key}={value}: one of {', '.join(choices)} is needed")
        if isinstance(value, float) and value and not 1.1754943508222875e-38 <= abs(value) <= 3.4028234663852886e38:
            raise ValueError(f"{key}={value}: a finite number that float32 can hold is needed")
        if type(value) is int and abs(value) >= 2**63:
            raise ValueError(f"{key}={value}: a number below 2^63 is needed")
        check_ranges(value, f"{key}.")
        limits = [(*LIMITS[name], metadata[name]) for name in LIMITS if name in metadata]
        numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int | float)]
        if not all(inside(number, limit) for number in numbers for _, inside, limit in limits):
            needed = " and ".join(f"{text} {limit:g}" for text, _, limit in limits)
            raise ValueError(f"{key}={value}: a number {needed} is needed")


def check_pair(prefix: str, node: TeacherConfig | EvaluateConfig, channels: int) -> None:
    """Raises ValueError for a mean without a standard deviation, or one of another number of values than the images' channels."""
    given = {name: getattr(node, name) for name in ("mean", "std") if getattr(node, name) is not None}
    for name, values in given.items():
        if len(given) == 1 or len(values) != channels:
            raise ValueError(f"{prefix}{name}={values}: mean and std are needed, of {channels} channel(s) each")


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """How two nested settings differ, one line a field: `key: old value there, new value now`; a missing key counts as None."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{prefix}.{k}".lstrip("."))]
    return [] if old == new else [f"{prefix}: {old!r} there, {new!r} now"]


def parse_every(text: str) -> tuple[int, float]:
    """`trainer.checkpoint_every` as (steps, seconds), either infinite (a step count of 0: only at epochs)."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?) ?(epoch|steps?|min)", text.strip())
    if match is None or not (number := float(match[1])) or (match[2] == "epoch" and number != 1):
        raise ValueError(f'trainer.checkpoint_every={text}: "1 epoch", "500 steps" or "10 min" is needed')
    return max(1, int(number)) if match[2].startswith("step") else 0, 60 * number if match[2] == "min" else inf


def documented(schema: Any) -> dict[str, tuple[str, str]]:
    """The type of each key of a schema and what it is: its choices, and the comment behind it in the source."""
    bases: Any = [base for base in reversed(schema.__mro__) if is_dataclass(base)]
    written = re.findall(r"^    (\w+): ([^=\n]+) = .*?(?:  # (.*))?$", "".join(map(inspect.getsource, bases)), re.M)
    choices = {f.name: ", ".join(f.metadata.get("one_of", ())) for f in fields(schema)}
    return {name: (kind, "; ".join(filter(None, [choices[name], comment]))) for name, kind, comment in written}


def _unnamed(schema: Any, prefix: str) -> Iterator[str]:
    for f in fields(schema):
        name = f"{prefix}{f.name}"
        if not f.metadata.get("key", True):
            yield name
        elif is_dataclass(f.type):
            yield from _unnamed(f.type, f"{name}.")
        yield from (f"{name}.{argument}" for argument in f.metadata.get("unnamed", ()))


UNNAMED = tuple(_unnamed(RunConfig, ""))
"""The dotted keys that are no part of a run's name: two starts of one run may differ in them."""
