"""The teacher's targets of a batch: computed live, or read from the teacher cache."""

from nst.teacher.cache import TeacherCache
from nst.teacher.cached import CachedTeacher
from nst.teacher.choose import Choice, choose_targets, weigh
from nst.teacher.cost import Cost, compute_seconds
from nst.teacher.fold import fold_batch_norm
from nst.teacher.layout import Array, arrays, kept_live, large
from nst.teacher.live import LiveTeacher, Normalization
from nst.teacher.source import MixedSource, NoTeacher, Prefetch, TargetSource
from nst.teacher.write import check_rows, describe_sizes, locked_together, write_cache

__all__ = [
    "Array",
    "CachedTeacher",
    "Choice",
    "Cost",
    "LiveTeacher",
    "MixedSource",
    "NoTeacher",
    "Normalization",
    "Prefetch",
    "TargetSource",
    "TeacherCache",
    "arrays",
    "check_rows",
    "choose_targets",
    "compute_seconds",
    "describe_sizes",
    "fold_batch_norm",
    "kept_live",
    "large",
    "locked_together",
    "weigh",
    "write_cache",
]
