"""Images as people have them, in class folders or tables of Hugging Face `datasets`, and the one rule by which they are decoded."""

import glob
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
WHITE = (255, 255, 255)

PARTS = ("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing", "eval", "evaluation")
"""Names of the parts for training, validation and testing, in any case; of several the first is used."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # naming them halves the time of a small image
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # 8 bits a channel


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image. Names that begin with a dot are not: `._1.jpg` is a Mac's shadow of `1.jpg`."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def decode(data: bytes, channels: int, background: Sequence[int] = WHITE, where: str = "") -> np.ndarray:
    """JPEG, PNG, WebP, GIF, BMP, TIFF or PPM bytes → [H, W, channels] uint8, upright; for the rules see docs/data.md.

    Raises ValueError, which says why, and `where`: the bytes are no image, truncated, damaged as far as the format can tell, or hold
    floats or numbers of more than 16 bits.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
        if not image.mode.startswith("I") and image.mode not in _MODES:
            raise ValueError(f"has pixels of mode {image.mode!r}; convert it to 8 bits a channel")
        with suppress(Exception):  # damaged EXIF: a viewer shows such an image as it lies
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # grey of 16 bits; Pillow itself reduces colours of 16 bits in this way
            values = np.asarray(image).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise ValueError(f"holds numbers from {values.min()} to {values.max()}; convert it to 8 or 16 bits")
            image = Image.fromarray((values >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
        pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, ValueError …
        reason = f"is no {', '.join(_FORMATS)}" if isinstance(error, Image.UnidentifiedImageError) else error
        prefix = f"{where}: the image " if where else ""
        raise ValueError(f"{prefix}cannot be decoded ({reason or type(error).__name__}; {len(data)} bytes)") from None
    return pixels.reshape(image.height, image.width, channels)


@dataclass
class EncodedImages:
    """Image files, or a column of encoded images in a table of `datasets` that is mapped from disk. Cheap to send to a process."""

    table: Any  # its only column has the type `datasets.Image(decode=False)`: the bytes, or the path of a file
    place: str  # for errors
    cached: bool = False  # whether `datasets` may keep results beside the table

    def read(self, row: int) -> tuple[bytes, str]:
        """The image's bytes, and its file or row. Raises ValueError or OSError, naming that, if it cannot be read."""
        return _content(self.table.data.column(0)[row].as_py(), f"{self.place}, row {row}")

    def describe(self, rows: Tensor) -> Iterator[bytes]:
        """Name and size of each of these images: what is known without reading it and stays when the data are copied."""
        import pyarrow.compute

        compute: Any = pyarrow.compute  # made at import, so that type checkers do not know its functions
        paths, content = (compute.struct_field(self.table.data.column(0), name) for name in ("path", "bytes"))
        paths, sizes = paths.to_pylist(), compute.binary_length(content).to_pylist()
        for row in rows.tolist():
            path, size = Path(paths[row] or ""), sizes[row]
            yield f"{path.name} {path.stat().st_size if size is None else size}".encode()

    def pixels(self, channels: int, size: int, background: Sequence[int]) -> Tensor:
        """All images: [n, channels, size, size] uint8, kept in the cache of `datasets`. Raises ValueError for one of another size."""
        import datasets

        settings = {"place": self.place, "channels": channels, "size": size, "background": tuple(background)}
        options: Any = {"batched": True, "with_indices": True, "remove_columns": self.table.column_names}
        options["features"] = datasets.Features({"pixels": datasets.Value("binary")})
        options["fn_kwargs"] = {**settings, "version": PIL.__version__}
        in_memory, said = not self.cached, f"decoding {self.place}"
        table = self.table.map(_pixels, keep_in_memory=in_memory, desc=said, **options)
        content = bytearray().join(table[:]["pixels"])
        return torch.frombuffer(content, dtype=torch.uint8).reshape(-1, channels, size, size)


def _pixels(batch: Any, rows: list[int], place: str, channels: int, size: int, background: Any, version: str) -> Any:
    """The pixels of some rows, channel by channel; with another `version` of the decoder they are decoded anew."""
    pixels = []
    for row, value in zip(rows, next(iter(batch.values())), strict=True):
        data, where = _content(value, f"{place}, row {row}")
        image = decode(data, channels, background, where)
        height, width = image.shape[:2]
        if height != size or width != size:
            raise ValueError(f"{where}: the image is {width}×{height} pixels, data.size={size} needs {size}×{size}")
        pixels.append(image.transpose(2, 0, 1).tobytes())
    return {"pixels": pixels}


def _content(value: dict[str, Any] | None, row: str) -> tuple[bytes, str]:
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise ValueError(f"{row}: there is no image")
    return (Path(value["path"]).read_bytes(), value["path"]) if value["bytes"] is None else (value["bytes"], row)


class Part(NamedTuple):
    """Encoded images, their labels [n] int64 (−1: not labelled), and the classes' names."""

    images: EncodedImages
    labels: Tensor
    classes: tuple[str, ...] | None


Parts = tuple[dict[str, Callable[[], Part]], list[str]]  # what reads each part, by name; what was found beside


def listed(names: Sequence[str], at_most: int = 5) -> str:
    """Names in a message, the first few of them."""
    return ", ".join(names[:at_most]) + (f", … ({len(names)} in all)" if len(names) > at_most else "")


def folder_parts(root: Path, labeled: bool) -> Parts:
    """The parts of `root/<part>/<class>/*`, or of `root/<class>/*` in one part; and the names of the other folders.

    Unless `labeled`, parts are flat or nested as they like. Raises ValueError, when a part is read, for a class without images.
    """
    import datasets

    def folders(folder: Path) -> list[str]:
        return sorted(at.name for at in folder.iterdir() if at.is_dir() and not at.name.startswith((".", "__")))

    def read(name: str) -> Part:
        folder, paths, labels = root / name, [], []
        classes = folders(folder) if labeled else ["."]
        for label, of in enumerate(classes):
            pattern = f"{glob.escape(str(folder / of))}/**/*.*"  # matches no name that begins with a dot
            files = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - unlike pathlib's, it follows links to folders
            images = [file for file in files if file.lower().endswith(SUFFIXES)]
            if not images:
                raise ValueError(f"{folder / of}: no images in it (an image ends in {', '.join(SUFFIXES)})")
            paths += images
            labels += [label if labeled else -1] * len(images)
            if others := [file for file in sorted({*files} - {*images}) if Path(file).is_file()]:
                print(f"{folder / of}: not read, since their names are no images': {listed(others)}", file=sys.stderr)
        # `datasets` itself would take seconds to list a folder, at every start
        table = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image(decode=False))
        return Part(EncodedImages(table, str(folder)), torch.tensor(labels), tuple(classes) if labeled else None)

    found = folders(root)
    names = [name for name in found if any(name.lower() in kinds for kinds in PARTS)]
    if labeled:  # a folder of images is a class, even if it is called "train"
        names = [name for name in names if not any(is_image(file.name) for file in (root / name).iterdir())]
    return {name: partial(read, name) for name in names or ["."]}, [n for n in found if names and n not in names]


def is_table(folder: Path) -> bool:
    """Whether a local folder is one for `datasets`: parquet or Arrow files, or an image folder with metadata."""
    files = (file for pattern in ("*", "[!.]*/*") for file in folder.glob(pattern))
    names = ("metadata.csv", "metadata.jsonl", "dataset_dict.json")
    return any(file.suffix in (".parquet", ".arrow") or file.name in names for file in files)
