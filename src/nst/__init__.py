"""Knowledge distillation of vision networks: NST and the losses it is compared with.

Each public name (docs/library.md) is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors
    from nst.api import Run as Run, distil as distil, runs as runs, train as train
    from nst.config import TrainerConfig as TrainerConfig
    from nst.data.batch import Batch as Batch
    from nst.data.memory import MemorySplit as MemorySplit, ViewScheme as ViewScheme
    from nst.dist import Dist as Dist
    from nst.distiller import Distiller as Distiller, Term as Term
    from nst.evaluate import Metrics as Metrics
    from nst.export import load_student as load_student
    from nst.layers import LayerHooks as LayerHooks, Pair as Pair, feature_shapes as feature_shapes
    from nst.loop import Loop as Loop, Training as Training
    from nst.losses import *  # noqa: F403
    from nst.models.weights import load_weights as load_weights, save_weights as save_weights
    from nst.signals import Interrupted as Interrupted
    from nst.teacher import LiveTeacher as LiveTeacher, Normalization as Normalization, Teacher as Teacher

__version__ = "0.3.0"

_NAMES = {
    "nst.api": "Run distil runs train",
    "nst.config": "TrainerConfig",
    "nst.data.batch": "Batch",
    "nst.data.memory": "MemorySplit ViewScheme",
    "nst.dist": "Dist",
    "nst.distiller": "Distiller Term",
    "nst.evaluate": "Metrics",
    "nst.export": "load_student",
    "nst.layers": "LayerHooks Pair feature_shapes",
    "nst.loop": "Loop Training",
    "nst.losses": "ABKD AT CATKD CC CRD DIST DKD KD MGD NKD NST OFA PKT RKD RLD SDD SP TTM VID WKDF WKDL CrossEntropy FitNet "
    "ReviewKD TransferLoss",
    "nst.models.weights": "load_weights save_weights",
    "nst.signals": "Interrupted",
    "nst.teacher": "LiveTeacher Normalization Teacher",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nst' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
