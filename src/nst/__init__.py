"""Knowledge distillation of vision networks: NST and the losses it is compared with.

The names below are the public ones (docs/library.md); each is imported when it is first used.
"""

# ruff: noqa: F403, F405 (the losses' names are those of nst.losses)

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nst.config import TrainerConfig
    from nst.data.batch import Batch
    from nst.data.memory import MemorySplit
    from nst.data.views import ViewScheme
    from nst.dist import Dist
    from nst.distiller import Distiller, Pair, Term
    from nst.evaluate import Metrics
    from nst.export import load_student
    from nst.layers import LayerHooks, feature_shapes
    from nst.loop import Loop, Training
    from nst.losses import *
    from nst.models.weights import load_weights, save_weights
    from nst.teacher import LiveTeacher, Normalization, Teacher

__version__ = "0.3.0"

__all__ = [
    "ABKD",
    "AT",
    "CATKD",
    "CC",
    "CRD",
    "DIST",
    "DKD",
    "KD",
    "MGD",
    "NKD",
    "NST",
    "OFA",
    "PKT",
    "RKD",
    "RLD",
    "SDD",
    "SP",
    "TTM",
    "VID",
    "WKDF",
    "WKDL",
    "Batch",
    "CrossEntropy",
    "Dist",
    "Distiller",
    "FitNet",
    "LayerHooks",
    "LiveTeacher",
    "Loop",
    "MemorySplit",
    "Metrics",
    "Normalization",
    "Pair",
    "ReviewKD",
    "Teacher",
    "Term",
    "TrainerConfig",
    "Training",
    "TransferLoss",
    "ViewScheme",
    "feature_shapes",
    "load_student",
    "load_weights",
    "save_weights",
]

_HOMES = {  # of what is no loss
    "nst.config": ("TrainerConfig",),
    "nst.data.batch": ("Batch",),
    "nst.data.memory": ("MemorySplit",),
    "nst.data.views": ("ViewScheme",),
    "nst.distiller": ("Distiller", "Pair", "Term"),
    "nst.export": ("load_student",),
    "nst.teacher": ("LiveTeacher", "Normalization", "Teacher"),
    "nst.layers": ("LayerHooks", "feature_shapes"),
    "nst.dist": ("Dist",),
    "nst.evaluate": ("Metrics",),
    "nst.loop": ("Loop", "Training"),
    "nst.models.weights": ("load_weights", "save_weights"),
}  # fmt: skip
_HOME = dict.fromkeys(__all__, "nst.losses") | {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nst' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
