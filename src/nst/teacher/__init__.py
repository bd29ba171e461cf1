"""The teacher as a source of targets: live beside the student, or read from a cache."""

from nst.teacher.cache import CachedTeacher, TeacherCache, cached_arrays, why_live, write_cache
from nst.teacher.live import LiveTeacher, Normalization, Teacher, fold_batch_norm
from nst.teacher.prepare import make_teacher

__all__ = [
    "CachedTeacher",
    "LiveTeacher",
    "Normalization",
    "Teacher",
    "TeacherCache",
    "cached_arrays",
    "fold_batch_norm",
    "make_teacher",
    "why_live",
    "write_cache",
]
