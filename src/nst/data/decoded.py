"""Small images of parquet shards in memory. Decoding 60,000 takes seconds, so the pixels are kept in the user's cache."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import PIL
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from nst.data.cache import cache_file, write_cache
from nst.data.checks import check_labels
from nst.data.decode import decode_all
from nst.data.parquet import row_count, row_groups
from nst.data.progress import Progress

_WORTH_KEEPING = 5_000  # images; fewer are decoded as fast


def decoded_shards(
    shards: Sequence[Path], label_column: str, size: int, num_classes: int, root: Path
) -> tuple[Tensor, Tensor]:
    """All images [n, 3, size, size] uint8 and labels [n] int64 of some shards, in order.

    Kept pixels are those of the SHA-256 of the shards' content, and carry a SHA-256 of their own: changed shards are decoded
    anew, a damaged copy is ignored.

    Raises:
        ValueError: a shard or an image is damaged, an image has another size, a label is out of range.
    """
    rows = sum(row_count(path, label_column) for path in shards)
    if rows < _WORTH_KEEPING:
        images, labels = _decode(shards, label_column, size, num_classes, root, rows)
    else:
        key = _key(shards, label_column, size)
        with cache_file(f"decoded-{key[:16]}.safetensors") as file:
            kept = _load(file, key, num_classes) if file else None
            images, labels = kept or _decode(shards, label_column, size, num_classes, root, rows)
            if file and kept is None:
                about = {"key": key, "sha256": _sha256(images, labels)}
                write_cache(file, safetensors.torch.save({"images": images, "labels": labels}, about))
    return images, labels


def _decode(
    shards: Sequence[Path], label_column: str, size: int, num_classes: int, root: Path, rows: int
) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    with Progress(f"reading {rows:,} images of data.root={root}", rows) as progress:
        for path in shards:
            for group in row_groups(path, label_column):
                check_labels(group.labels, num_classes, group.where)
                for start in range(0, len(group.encoded), 1000):
                    some = group.encoded[start : start + 1000]
                    images.append(decode_all(some, 3, size, lambda i, g=group, s=start: g.where(s + i)))
                    progress.update(len(some))
                labels.append(group.labels)
    if not images:
        raise ValueError(f"{shards[0]}: holds no images")
    return torch.cat(images), torch.cat(labels)


def _key(shards: Sequence[Path], label_column: str, size: int) -> str:
    digest = hashlib.sha256(f"{label_column} {size} Pillow {PIL.__version__}".encode())
    for path in shards:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _load(file: Path, key: str, num_classes: int) -> tuple[Tensor, Tensor] | None:
    """The copy, if it is intact, of these shards, and its labels are in range; else the shards are read again."""
    try:
        with safetensors.safe_open(file, "pt") as content:
            about = content.metadata() or {}
            if about.get("key") != key:
                return None
            images, labels = content.get_tensor("images"), content.get_tensor("labels")
    except (OSError, SafetensorError):
        return None
    whole = about.get("sha256") == _sha256(images, labels)
    return (images, labels) if whole and labels.min() >= 0 and labels.max() < num_classes else None


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
