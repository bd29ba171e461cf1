"""Whether all ranks have read the same data."""

import hashlib

from nst.data.dataset import Dataset
from nst.data.memory import MemorySplit
from nst.dist import Dist


def check_same_data(data: Dataset, ranks: Dist) -> None:
    """Raises ValueError, on every rank, where one has other images than rank 0: by pixels in memory, else by the labels."""
    if ranks.world == 1:
        return
    digest = hashlib.sha256()
    for split in (data.train, data.val, data.test):
        if isinstance(split, MemorySplit):
            digest.update(split.fingerprint.encode())
        elif split is not None:
            digest.update(split.labels.contiguous().numpy().data)
    first, *others = ranks.gather(int(digest.hexdigest()[:12], 16))  # 48 bits, which float64 holds
    for rank, other in enumerate(others, 1):
        if other != first:
            raise ValueError(
                f"data={data.name}: rank {rank} has other images or labels than rank 0. All machines need the same files in "
                "data.root; a data set of your own must give the same images in every process: use a generator with a fixed seed"
            )
