"""The teacher as a source of targets: live beside the student, or read from a cache."""

from nst.teacher.cache import CachedTeacher, TeacherCache, cached_arrays, why_live, write_cache
from nst.teacher.ensemble import Ensemble
from nst.teacher.live import LiveTeacher, Teacher
from nst.teacher.network import Normalization

__all__ = [
    "CachedTeacher", "Ensemble", "LiveTeacher", "Normalization", "Teacher", "TeacherCache", "cached_arrays", "why_live", "write_cache",
]  # fmt: skip
