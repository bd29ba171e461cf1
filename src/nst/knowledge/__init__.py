"""What the teacher says about a batch: computed live, or read from a store."""

from nst.knowledge.fold import fold_batch_norm
from nst.knowledge.live import LiveTeacher, Normalization
from nst.knowledge.source import Announcing, Knowledge, MixedKnowledge, NoKnowledge

__all__ = [
    "Announcing",
    "Knowledge",
    "LiveTeacher",
    "MixedKnowledge",
    "NoKnowledge",
    "Normalization",
    "fold_batch_norm",
]
