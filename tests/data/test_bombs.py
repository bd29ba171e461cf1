"""Small files that would fill the memory: refused by what their headers say."""

import io
import pickle
import resource
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.data.samples import encode, noise, write_shard, write_tree
from tests.data.test_cifar import load as load_cifar
from tests.data.test_folder import load

from nst.data import parquet
from nst.data.decode import decode


def png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def blank(kind: str, side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def little_memory() -> Any:
    """Peak of this process's memory must grow by less than 300 MB (it may have been higher before)."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("side", [10_001, 14_000, 30_000, 2**20])
def test_an_image_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(
        ValueError, match=rf"has {side}×{side} pixels by its header, more than data.max_pixels=100000000"
    ):
        decode(png(side, side), 3)
    assert Image.MAX_IMAGE_PIXELS is not None  # Pillow's limit, for whoever else uses it


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_limit_is_a_key(kind: str) -> None:
    data = blank(kind, 100)
    assert decode(data, 3, max_pixels=10_000).shape == (100, 100, 3)
    with pytest.raises(ValueError, match=r"100×100 pixels by its header, more than data.max_pixels=9999"):
        decode(data, 3, max_pixels=9_999)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_large_image_of_a_class_folder_is_named(tmp_path: Path, workers: int) -> None:
    write_tree(tmp_path)
    path = tmp_path / "train" / "class1" / "2.JPEG"
    path.write_bytes(png(30_000, 30_000))
    loader = load(tmp_path).split("train").loader(4, train=True, workers=workers)
    with pytest.raises(ValueError, match=rf"^{path}: the image has 30000×30000 pixels"):
        list(loader.epoch(0))
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: takes nothing on disk
    with pytest.raises(ValueError, match=rf"^{path}: 1,099,511,627,776 bytes; no image is so large"):
        list(load(tmp_path).split("train").loader(4, train=True).epoch(0))


@pytest.mark.usefixtures("little_memory")
def test_cifar_images_are_compared_with_the_size_before_they_are_decoded(hub_cifar: tuple[Path, np.ndarray]) -> None:
    root, _ = hub_cifar
    encoded = [encode(image) for image in noise(10)]
    write_shard(root / "train-00001-of-00002.parquet", [*encoded[:5], png(30_000, 30_000), *encoded[6:]], [*range(10)])
    with pytest.raises(
        ValueError, match=r"train-00001-of-00002\.parquet, row 5: the image is 30000×30000 pixels, data.size"
    ):
        load_cifar(root)


def repeated(path: Path, image: bytes, rows: int) -> None:
    """A shard that names one image many times."""
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([image], pa.binary()))
    pq.write_table(
        pa.table({"image": images, "label": pa.array(np.arange(rows) % 10)}).cast(
            pa.schema([("image", pa.dictionary(pa.int32(), pa.binary())), ("label", pa.int64())])
        ),
        path, compression="zstd", store_schema=False,
    )  # fmt: skip


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("loader", [load, load_cifar])
@pytest.mark.parametrize(
    ("image", "rows", "message"),
    [
        (bytes(20_000), 50_000, r"1,000,000,000 bytes of images from a file of"),
        (b"image", 1_000_000, r"1,000,000 rows in [\d,]+ bytes"),
        (bytes(8_000_000), 10, "bytes in row group 0 from a file of"),
    ],
    ids=["repeated", "rows", "zeros"],
)
def test_a_shard_that_grows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: Any, image: bytes, rows: int, message: str
) -> None:
    monkeypatch.setattr(parquet, "_FREE_BYTES", 1_000_000)
    for part in ("train", "test"):
        repeated(tmp_path / f"{part}-0.parquet", image, rows)
    assert (tmp_path / "train-0.parquet").stat().st_size < 200_000
    with pytest.raises(ValueError, match=rf"train-0\.parquet: .*{message}"):
        loader(tmp_path, num_classes=10)


BOMBS = {
    "memo": b"\x80\x02}r\xff\xff\xff\x3f.",
    "string": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "shape": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L4000000000L\ntS'b'\ntR.",
    "called": b"cnumpy\nndarray\n(L4000000000L\ntR.",
    "codec": b"c_codecs\nencode\n(Vtext\nVbz2\ntR.",
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_that_asks_for_memory_is_refused(folder_cifar: tuple[Path, np.ndarray], kind: str) -> None:
    path = folder_cifar[0] / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(BOMBS[kind])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"data_batch_3: cannot be read"):
        load_cifar(folder_cifar[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_of_every_protocol_are_read(folder_cifar: tuple[Path, np.ndarray], protocol: int) -> None:
    root, _ = folder_cifar
    path = root / "cifar-10-batches-py" / "data_batch_3"
    first = load_cifar(root).fingerprint
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert load_cifar(root).fingerprint == first
