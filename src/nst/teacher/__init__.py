"""What the teacher says about a batch: computed live, or read from a cache."""

from nst.teacher.cache import TeacherCache
from nst.teacher.cached import CachedTeacher
from nst.teacher.fold import fold_batch_norm
from nst.teacher.layout import Array, arrays, kept_live
from nst.teacher.live import LiveTeacher, Normalization
from nst.teacher.source import MixedSource, NoTeacher, Prefetch, SummarySource
from nst.teacher.write import describe_sizes, write_cache

__all__ = [
    "Array",
    "CachedTeacher",
    "LiveTeacher",
    "MixedSource",
    "NoTeacher",
    "Normalization",
    "Prefetch",
    "SummarySource",
    "TeacherCache",
    "arrays",
    "describe_sizes",
    "fold_batch_norm",
    "kept_live",
    "write_cache",
]
