"""What the teacher says about a batch: computed live, or read from a store."""

from nst.knowledge.live import LiveTeacher, Normalization

__all__ = ["LiveTeacher", "Normalization"]
