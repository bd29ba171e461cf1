"""Data that changed under the same names: noticed, in copies and caches and by the fingerprint."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.samples import write_shard, write_tree
from tests.data.test_cifar import load as load_cifar
from tests.data.test_folder import load

from nst.data import decoded, digests
from nst.data.cache import write_cache


def bitmap(value: int, size: int = 20) -> bytes:
    """A grey image; the file's size does not depend on the grey."""
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, "BMP")
    return file.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that keeps also what is small."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(decoded, "_WORTH_KEEPING", 0)
    return tmp_path / "cache" / "nst"


def shard(path: Path, values: list[int], labels: list[int], size: int = 20) -> None:
    """Replaces a shard by one of the same size and time."""
    before = path.stat() if path.exists() else None
    write_shard(path, [bitmap(value, size) for value in values], labels, compression="none")
    if before is not None:
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_replaced_shards_are_unpacked_anew(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    shard(root / "val-0.parquet", [1, 2, 3], [0, 1, 2])
    shard(root / "train-0.parquet", [10, 20, 30], [0, 1, 2])
    first = load(root)
    assert load(root).fingerprint == first.fingerprint
    old = set((root / "unpacked").iterdir())
    shard(root / "train-0.parquet", [30, 20, 10], [2, 1, 0])
    second = load(root)
    assert second.train.labels.tolist() == [2, 1, 0]
    assert [int(second.train.source.read(row)[-1]) for row in range(3)] == [30, 20, 10]
    assert second.fingerprint != first.fingerprint
    assert len(set((root / "unpacked").iterdir()) & old) == 3  # the lock, and the validation part as it was
    assert len(set((root / "unpacked").iterdir())) == 5
    shard(root / "train-0.parquet", [31, 20, 10], [2, 1, 0])  # other pixels, equal labels
    assert load(root).fingerprint != second.fingerprint


def test_copied_shards_have_the_same_fingerprint(tmp_path: Path) -> None:
    for part in ("train", "val"):
        shard(tmp_path / "hub" / f"{part}-0.parquet", [1, 2, 3], [0, 1, 2])
    shutil.copytree(tmp_path / "hub", tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == load(tmp_path / "hub").fingerprint


def test_a_damaged_index_is_written_anew(tmp_path: Path) -> None:
    for part in ("train", "val"):
        shard(tmp_path / f"{part}-0.parquet", [1, 2, 3], [0, 1, 2])
    fingerprint = load(tmp_path).fingerprint
    for content in (b"", b"no index", None):
        (index,) = (tmp_path / "unpacked").glob("train-*.npz")
        index.write_bytes(index.read_bytes()[:-40] if content is None else content)
        assert load(tmp_path).fingerprint == fingerprint


def test_other_pixels_in_class_folders_are_another_data_set(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "tree"
    write_tree(root)
    path = root / "train" / "class1" / "0.JPEG"
    first, size, time = load(root).fingerprint, path.stat().st_size, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
    assert path.stat().st_size == size
    assert load(root).fingerprint != first
    content[-1] ^= 1
    path.write_bytes(content)
    assert load(root).fingerprint == first
    shutil.copytree(root, tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == first


def test_files_are_hashed_once_and_a_bad_cache_is_ignored(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "tree"
    write_tree(root)
    first = load(root).fingerprint
    kept = {path: path.read_bytes() for path in cache.glob("digests-*") if path.suffix != ".lock"}
    assert len(kept) == 2

    def forbidden(*_: object) -> None:
        raise AssertionError("a file was read again")

    with monkeypatch.context() as patched:
        patched.setattr(digests.hashlib, "file_digest", forbidden)
        assert load(root).fingerprint == first
    for path, content in kept.items():  # a digest changed, cut, nothing, another folder's
        other = next(text for name, text in kept.items() if name != path)
        for bad in (content[:-1] + b"?", content[:-5], b"", other):
            path.write_bytes(bad)
            assert load(root).fingerprint == first


def test_without_a_cache_all_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path / "tree")
    first = load(tmp_path / "tree").fingerprint
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(tmp_path / "tree").fingerprint == first


def test_decoded_pixels_are_kept_under_the_content_of_the_shards(
    hub_cifar: tuple[Path, np.ndarray], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = hub_cifar
    first = load_cifar(root).fingerprint
    decode_all, calls = decoded.decode_all, []
    monkeypatch.setattr(decoded, "decode_all", lambda *args: calls.append(1) or decode_all(*args))
    assert load_cifar(root).fingerprint == first
    assert not calls
    for path in cache.glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1000] ^= 1
        path.write_bytes(content)
    assert load_cifar(root).fingerprint == first
    assert calls
    with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet, row 7: label 7"):
        load_cifar(root, num_classes=7)
    shutil.copy(root / "test-00000-of-00001.parquet", root / "train-00001-of-00002.parquet")
    assert load_cifar(root).fingerprint != first


def test_a_cache_that_cannot_be_written_is_said_and_does_no_harm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.mkdir()
    write_cache(taken, b"content")
    told = capsys.readouterr().err
    assert f"{taken} could not be written: " in told
    assert "the next start takes as long again" in told
    assert list(tmp_path.iterdir()) == [taken]
