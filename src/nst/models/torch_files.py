"""Files of `torch.save`, checked before torch loads them: the names in them, and the memory they need.

torch refuses code in them (`weights_only`), but trusts the sizes that they declare.
"""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, ClassVar

import torch

_MAGIC = 0x1950A86A20F9469CFC6C  # torch's, at the head of files of before 1.6
_GROWTH = 2  # what is compressed may be this many times as large as the file: weights hardly compress
_SPARE = 2**20  # bytes
_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip


class NotPlainError(ValueError):
    """A file names something other than tensors and plain values; the message is its name."""


def load_plain(file: BinaryIO) -> Any:
    """The tensors and plain values in a file of `torch.save`, on the CPU.

    Uses at most a few times the size of the file in memory, and runs no code that it names.

    Raises:
        NotPlainError: it names anything else.
        Exception: it is damaged or no file of torch; any kind, as parsers of damaged files raise them.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    zipped = file.read(4) == b"PK\x03\x04"  # torch's own test
    file.seek(0)
    if zipped:
        _look_through_zip(file, size)
    else:
        _look_through_legacy(file, size)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _look_through_zip(file: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        parts = {part.filename.lower(): part.file_size for part in archive.infolist()}
        if len(parts) != len(archive.infolist()):
            raise ValueError("two of its parts have the same name")
        if (total := sum(parts.values())) > _GROWTH * size + _SPARE:
            raise ValueError(f"its parts would take {total:,} bytes, the file has {size:,}")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip file, but not one of torch.save")
        if (part := archive.testzip()) is not None:
            raise ValueError(f"the checksum of its part {part} does not match")
        folder = pickles[0].removesuffix("data.pkl")

        def check(key: str, needed: int) -> None:
            available = parts.get(f"{folder}data/{key}".lower())
            if available is None or needed > available:
                raise ValueError(
                    f"a tensor needs {needed:,} bytes of its part data/{key}, which has {available or 0:,}"
                )

        _Survey(io.BytesIO(archive.read(pickles[0])), check).load()


def _look_through_legacy(file: BinaryIO, size: int) -> None:
    storages: dict[str, int] = {}

    def check(key: str, needed: int) -> None:
        storages[key] = max(needed, storages.get(key, 0))
        if sum(storages.values()) > size:
            raise ValueError(f"its tensors need {sum(storages.values()):,} bytes, the file has {size:,}")

    try:
        magic = _Survey(file, check).load()
    except NotPlainError:
        raise
    except Exception:  # a text file, for instance
        magic = None
    if magic != _MAGIC:
        raise ValueError("it does not begin as files of torch.save do")
    for _ in range(4):  # protocol, machine, content, keys of the storages that follow
        _Survey(file, check).load()


class _Storage:
    """Stands for a storage."""


class _Mapping(dict[Any, Any]):
    """Stands for a dictionary with attributes."""


def _check_keys(keys: Iterable[Any]) -> None:
    """Nested tuples as keys can take forever to hash."""
    for key in keys:
        if not isinstance(key, str | int | float | bytes | None):
            raise NotPlainError(f"a {type(key).__name__} as a key")


def _mapping(items: Any = ()) -> _Mapping:
    pairs = list(items.items() if isinstance(items, dict) else items)
    _check_keys(key for key, _ in pairs)
    return _Mapping(pairs)


def _set(items: Any = ()) -> tuple[Any, ...]:
    _check_keys(items)
    return tuple(items)


def _tensor(storage: Any, *_: Any) -> _Storage:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without storage")
    return storage


def _with_attributes(make: Any, _kind: Any, args: Any, _state: Any) -> Any:
    if make not in (_tensor, _first):
        raise NotPlainError("torch._tensor._rebuild_from_type_v2")
    return make(*args)


def _first(value: Any, *_: Any) -> Any:
    return value


def _nothing(*_: Any) -> None:
    """Stands for a value that nothing depends on."""


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise NotPlainError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[str, Any] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _latin1,
    "torch.Size": _first,
    "torch.device": _nothing,
    "torch.Tensor": _nothing,
    "torch.nn.parameter.Parameter": _nothing,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
}


_PythonUnpickler: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]


class _Survey(_PythonUnpickler):
    """Reads a pickle with stand-ins for everything that it names, so that nothing is called or allocated.

    Uses the unpickler in Python: the one in C allocates as many values as an index in the file says.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: BinaryIO, check: Callable[[str, int], None]) -> None:
        """`check`: called with each storage's key and the bytes it needs."""
        super().__init__(file, encoding="latin1")
        self.check = check

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _STAND_INS:
            return _STAND_INS[full]
        if module in ("torch", "torch.cuda", "torch.storage") and name in _BYTES:
            return _BYTES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return name
        raise NotPlainError(full)

    def persistent_load(self, pid: Any) -> _Storage:
        word, itemsize, key, _place, count, *_ = pid
        if (
            word not in ("storage", b"storage")
            or not isinstance(itemsize, int)
            or not isinstance(count, int)
            or count < 0
        ):
            raise ValueError("a storage without type or size")
        self.check(str(key), itemsize * count)
        return _Storage()

    def load_reduce(self) -> None:
        args, make = self.stack.pop(), self.stack[-1]
        if not callable(make):
            raise NotPlainError(f"a call of {make!r}")
        self.stack[-1] = make(*args)

    def load_build(self) -> None:
        self.stack.pop()

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def refuse(self) -> None:
        raise NotPlainError("an object")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    for code in (pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST, pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT,
                 pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4):  # fmt: skip
        dispatch[code[0]] = refuse
