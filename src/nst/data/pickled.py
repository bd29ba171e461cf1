"""CIFAR's pickles, read without running any code in them and with no more memory than their size on disk."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

_LARGEST = 2**30  # bytes; the largest of CIFAR's files has 155 MB


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of numpy arrays and plain values.

    Raises:
        ValueError: the file is missing, damaged, too large, or holds anything else.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path}: {path.stat().st_size:,} bytes; no CIFAR batch is so large")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing; data.download=true in an empty data.root fetches the whole data set"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        _check_opcodes(data)
        content = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path}: cannot be read ({error or type(error).__name__}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a CIFAR batch")
    return content


def _check_opcodes(data: bytes) -> None:
    """Strings must have their declared length, and a memo index makes the unpickler allocate that many places."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= max(len(data), 255):
            raise pickle.UnpicklingError(f"memo index {argument}")


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays, as in the batches, and refuses anything else that a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy":
            known = {"_reconstruct": _empty_array, "ndarray": "ndarray", "dtype": np.dtype, "_frombuffer": _from_buffer}
            if name in known:
                return known[name]
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them for Python 2
            return _latin1
        raise pickle.UnpicklingError(f"it calls {module}.{name}, which a CIFAR batch does not need")


def _empty_array(_type: str, shape: tuple[int, ...], kind: bytes) -> np.ndarray:
    """The call with which a pickle creates an array; shape and values follow, and numpy compares the two."""
    if shape != (0,):
        raise pickle.UnpicklingError(f"an array is begun with shape {shape}, not (0,)")
    return np.ndarray(shape, np.uint8)


def _from_buffer(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order=order)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")
