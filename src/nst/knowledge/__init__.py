"""What the teacher says about a batch: computed live, or read from a store."""

from nst.knowledge.filling import announce_sizes, fill
from nst.knowledge.fold import fold_batch_norm
from nst.knowledge.layout import Array, arrays, kept_live
from nst.knowledge.live import LiveTeacher, Normalization
from nst.knowledge.source import Announcing, Knowledge, MixedKnowledge, NoKnowledge
from nst.knowledge.store import Store
from nst.knowledge.stored import StoredKnowledge

__all__ = [
    "Announcing",
    "Array",
    "Knowledge",
    "LiveTeacher",
    "MixedKnowledge",
    "NoKnowledge",
    "Normalization",
    "Store",
    "StoredKnowledge",
    "announce_sizes",
    "arrays",
    "fill",
    "fold_batch_norm",
    "kept_live",
]
