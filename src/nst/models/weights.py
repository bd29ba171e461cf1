"""Weights files: safetensors with metadata, and files of `torch.save` as people have them, read without running their code."""

import argparse
import hashlib
import io
import json
import logging
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nst.files import write_whole

log = logging.getLogger(__name__)

CHECKSUM = "sha256_of_tensors"  # in the metadata of the files we write
State = dict[str, Tensor]

CLASSIFIERS = ("fc", "linear", "classifier", "head")  # one of these in the file may be another in the model
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")  # may be missing, or left over
WRAPPED = re.compile(
    r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)  # a part that was compiled or sharded alone

# The names under which training code keeps a state, and the prefixes that wrappers leave on its keys.
STATES = ("state_dict", "model_state_dict", "model_state", "model", "net", "module", "_orig_mod")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model")
_CHECKPOINT = b"NST checkpoint"  # the first line of a run's checkpoint, before a file of `torch.save`

_scalar = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue]
# Values that stand beside weights in many files and hold nothing but data: parsed arguments, numpy's numbers.
_PLAIN: list[Any] = [
    argparse.Namespace, np.dtype, _scalar, (_scalar, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "bool")),
]  # fmt: skip


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds."""

    path: Path
    states: dict[str, State]  # dotted name of a dictionary in the file ("": the file itself) → its tensors
    metadata: dict[str, str]  # of a safetensors file


def read_weights(path: str | PathLike[str]) -> WeightsFile:
    """Read the tensors of a file: `.safetensors`, anything of `torch.save`, or a checkpoint of a run.

    Raises:
        ValueError: missing, damaged (as far as its checksums tell), without tensors, or a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist" + " (it is a folder)" * path.is_dir())
    metadata: dict[str, str] = {}
    try:
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                content: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        else:
            content = _unpickled(path.read_bytes())
    except Exception as error:  # on a damaged file a parser may raise nearly anything
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code is None:
            reason = (
                "" if "weights_only" in str(error) else f": {type(error).__name__} {error}".partition("\n")[0][:200]
            )
            if "TorchScript" in str(error):
                reason = (
                    ": TorchScript; torch.save(torch.jit.load('old.pt').state_dict(), 'new.pth') makes weights of it"
                )
            with path.open("rb") as file:
                begins = file.read(24)
            raise ValueError(
                f"weights file {path} is damaged, or neither safetensors nor of torch.save; it begins with {begins!r}{reason}"
            ) from error
        raise ValueError(
            f"weights file {path} holds more than tensors and plain values ({code[1]}); loading it could run its code, so it is "
            "refused. Only the state dict is needed. If you trust the file, save the state dict alone, a "
            "whole network's by its .state_dict(), one among others by its key: "
            "import torch; torch.save(torch.load('old.pth', weights_only=False)['model'], 'new.pth')"
        ) from error
    states = dict(_states(content))
    if not states:
        raise ValueError(f"weights file {path} holds no state dict (found {type(content).__name__})")
    expected = metadata.pop(CHECKSUM, None)
    if expected is not None and expected != (digest := _checksum(content)):
        raise ValueError(
            f"weights file {path} is damaged: its tensors have SHA-256 {digest}, which is not what it says"
        )
    return WeightsFile(path, states, metadata)


def recorded_size(path: str | PathLike[str] | None) -> int | None:
    """Height and width of the images that weights were trained on, if their safetensors file says so."""
    if path is None or not Path(path).is_file() or not _is_safetensors(Path(path)):
        return None
    size = read_weights(path).metadata.get("size")
    return None if size is None else int(size)


def _is_safetensors(path: Path) -> bool:
    """By its content, whatever it is called: the length of a header, then the header in JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unpickled(content: bytes) -> Any:
    if content.startswith(_CHECKPOINT):
        content = content.partition(b"\n")[2]
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch does not look at the checksums
            if (part := archive.testzip()) is not None:
                raise ValueError(f"the checksum of its part {part} does not match")
    with torch.serialization.safe_globals(_PLAIN):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _states(content: Any, name: str = "") -> Iterator[tuple[str, State]]:
    """The dictionaries with tensors in nested dictionaries, by their dotted names."""
    if not isinstance(content, Mapping):
        return
    if state := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
        yield name, state
    for key, value in content.items():
        yield from _states(value, f"{name}.{key}" if name else str(key))


@dataclass(frozen=True)
class _Candidate:
    """Tensors of a file under one prefix, as weights of a model."""

    name: str  # dotted: the dictionary and the prefix of its keys; "": the file itself
    state: State  # by the model's names
    problems: dict[str, list[str]]  # kind of difference → names; empty: it fits

    @property
    def rank(self) -> tuple[int, int]:
        """0 for a name by which weights are known, 1 for that of an average, 2 for others; then the order in STATES."""
        parts = [part for part in self.name.split(".") if part]
        if any(part not in (*STATES, *AVERAGES) for part in parts):
            return 2, 0
        average = any(part in AVERAGES for part in parts)
        return int(average), min((STATES.index(part) for part in parts if part in STATES), default=0)


def load_weights(
    model: nn.Module, path: str | PathLike[str], key: str | None = None, drop: Collection[str] = ()
) -> dict[str, str]:
    """Load a file into `model`: every name and shape of the model's state has to be there.

    Names are used as they are where they fit. Else the state may lie in dictionaries (`state_dict`, `model`, `ema`, …), its names may have
    prefixes (`module.`, `_orig_mod.`, `model.`, any other if it is the only one that fits), and the classifier may be called `fc`,
    `linear`, `classifier` or `head`. Counters such as `n_averaged`, and what stands beside the state that fits, are left out.

    Args:
        key: the state to load where a file holds several, such as "state_dict_ema"; None: the weights before their average.
        drop: parts that keep the model's values, such as ["fc"], whatever the file has for them.

    Returns:
        The metadata of a safetensors file, else {}.

    Raises:
        ValueError: names the keys that are missing, unexpected, or of another shape; unknown `key` or `drop`; several
            states fit and nothing says which.
    """
    check_saveable(model)
    file, own = read_weights(path), model.state_dict()
    candidates = [
        _candidate(name, state, prefix, own, drop)
        for name, state in file.states.items()
        for prefix in _prefixes(state, own)
    ]
    for part in drop:
        if not any(_within(name, [part]) for names in (own, *(c.state for c in candidates)) for name in names):
            raise ValueError(f"drop={list(drop)}: neither {type(model).__name__} nor {path} has a part {part}")
    if key is not None:
        names = [candidate.name or "weights without a name" for candidate in candidates]
        candidates = [c for c in candidates if f".{key}." in f".{c.name}."]
        if not candidates:
            raise ValueError(f"weights file {path} has no state {key} for this network; it has {', '.join(names)}")
    fitting = sorted((c for c in candidates if not c.problems), key=lambda c: c.rank)
    if not fitting:
        best = max(candidates, key=lambda c: sum(name in own for name in c.state))
        differences = "; ".join(f"{kind}: {_few(names)}" for kind, names in best.problems.items())
        advice = ""
        if set(best.problems) == {"missing"}:  # a backbone, perhaps
            parts = sorted({name.partition(".")[0] for name in best.problems["missing"]})
            advice = f"; for a student, model.drop=[{','.join(parts)}] leaves what is missing as it starts"
        raise ValueError(f"weights file {path} is of another architecture; {differences}{advice}")
    chosen, *others = fitting
    if others:
        names = " and ".join(c.name or "weights without a name" for c in fitting)
        if chosen.rank[0] == others[0].rank[0] == 2:
            raise ValueError(
                f"weights file {path} holds {names}, which all fit; weights_key={chosen.name} loads the first"
            )
        log.warning("%s holds %s: loaded %s; weights_key=%s loads the other", path, names, chosen.name, others[0].name)
    model.load_state_dict({name: value for name, value in chosen.state.items() if name in own}, strict=False)
    return file.metadata


def _prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What stands before names of the model in the names of a state, the most frequent first; "" is always among them."""
    heads: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(1, len(parts)):
            if ".".join(parts[start:]) in own or parts[start] in CLASSIFIERS:
                heads[".".join(parts[:start]) + "."] += 1
    return ["", *(head for head, _ in heads.most_common(20))]


def _candidate(
    name: str, state: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor], drop: Collection[str]
) -> _Candidate:
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    found = {key if key in own else WRAPPED.sub("", key): value for key, value in found.items()}
    present = [part for part in CLASSIFIERS if f"{part}.weight" in found]
    needed = [part for part in CLASSIFIERS if f"{part}.weight" in own]
    if len(present) == len(needed) == 1:
        found = {re.sub(rf"^{present[0]}\.", f"{needed[0]}.", key): value for key, value in found.items()}
    found = {key: value for key, value in found.items() if not key.endswith(COUNTERS) or key in own}
    kept = {key: value for key, value in found.items() if not _within(key, drop)}
    tied = {_place(own[key]) for key in kept if key in own}
    asked = {key: value for key, value in own.items() if not _within(key, drop) and not key.endswith(COUNTERS)}
    problems = {
        "missing": [k for k, v in asked.items() if k not in kept and not (v.numel() and _place(v) in tied)],
        "not in the model": [key for key in kept if key not in own],
        "other shapes": [
            f"{key}: {list(value.shape)} in the file, {list(own[key].shape)} in the model"
            for key, value in kept.items()
            if key in own and value.shape != own[key].shape
        ],
        "no float weights": [
            f"{key}: {value.dtype}"
            for key, value in kept.items()
            if key in own and own[key].is_floating_point() and not value.is_floating_point()
        ],
        "not a number": [key for key, value in kept.items() if value.is_floating_point() and value.isnan().any()],
    }
    place = ".".join(part for part in (name, prefix.rstrip(".")) if part)
    return _Candidate(place, kept, {kind: names for kind, names in problems.items() if names})


def _within(name: str, parts: Collection[str]) -> bool:
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that share their memory."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_saveable(model: nn.Module) -> None:
    """Raises ValueError for state that is no tensor (`get_extra_state`): weights files hold tensors alone."""
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{type(model).__name__}: its state {key} is a {type(value).__name__}, but weights files hold tensors alone; "
                "let get_extra_state return a tensor, or use a buffer"
            )


def save_weights(path: str | PathLike[str], model: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write the model's state atomically as safetensors with metadata and its checksum.

    Weights that two layers share are written for each; loading them into the same network shares them again.

    Raises:
        ValueError: state that is no tensor.
        OSError: see `write_whole`.
    """
    check_saveable(model)
    state: State = {}
    storages: set[int] = set()
    for key, value in model.state_dict().items():
        plain = value.detach().cpu().contiguous()
        start = plain.untyped_storage().data_ptr()
        state[key] = plain.clone() if start in storages else plain
        storages.add(start)
    content = save(state, {**(metadata or {}), CHECKSUM: _checksum(state)})
    # The header's keys come in a random order; sorted, equal weights give equal files.
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    write_whole(Path(path), len(header).to_bytes(8, "little") + header + content[8 + size :])


def _checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key} {state[key].dtype} {list(state[key].shape)}\n".encode())
        digest.update(state[key].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
