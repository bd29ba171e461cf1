"""Weights files: safetensors with metadata, and files of `torch.save` as people have them, read without running their code."""

import argparse
import io
import json
import logging
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nst.files import MAGIC, write_whole

log = logging.getLogger(__name__)

State = dict[str, Tensor]

CLASSIFIERS = ("fc", "linear", "classifier", "head")  # one of these in the file may be another in the model
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")  # may be missing, or left over
# Of a part compiled or sharded alone.
WRAPPED = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The names under which training code keeps a state, and the prefixes that wrappers leave on its keys.
STATES = ("state_dict", "model_state_dict", "model_state", "model", "net", "module", "_orig_mod")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model")
_scalar = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue]
# Values that stand beside weights in many files and hold nothing but data: parsed arguments, numpy's numbers.
_PLAIN: list[Any] = [argparse.Namespace, np.dtype, _scalar, (_scalar, "numpy.core.multiarray.scalar")]
_PLAIN += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "bool")]


def read_weights(path: str | PathLike[str]) -> tuple[dict[str, State], dict[str, str]]:
    """Read the tensors of a file: `.safetensors`, anything of `torch.save`, or a checkpoint of a run.

    Returns:
        Dotted name of a dictionary in the file ("": the file itself) → its tensors; the metadata of a safetensors file, else {}.

    Raises:
        ValueError: missing, damaged, without tensors, or a pickle that would run code.
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
            stored = path.read_bytes()
            stored = stored.partition(b"\n")[2] if stored.startswith(MAGIC) else stored
            if stored.startswith(b"PK") and zipfile.ZipFile(io.BytesIO(stored)).testzip() is not None:
                raise ValueError("a checksum does not match")  # torch does not look at them
            with torch.serialization.safe_globals(_PLAIN):
                content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:  # on a damaged file a parser may raise nearly anything
        if isinstance(error, pickle.UnpicklingError) and (code := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise ValueError(f"{path} could run code ({code[1]}) and is refused: save the state dict alone") from error
        kind = type(error).__name__
        raise ValueError(f"weights file {path} is neither safetensors nor of torch.save, or damaged: {kind}") from error
    states = dict(_states(content))
    if not states:
        raise ValueError(f"weights file {path} holds no state dict (found {type(content).__name__})")
    return states, metadata


def recorded_size(path: str | PathLike[str] | None) -> int | None:
    """Height and width of the images that weights were trained on, if their safetensors file says so."""
    if path is None or not Path(path).is_file() or not _is_safetensors(Path(path)):
        return None
    with safe_open(path, framework="pt") as file:
        size = (file.metadata() or {}).get("size")
    return None if size is None else int(size)


def _is_safetensors(path: Path) -> bool:
    """By its content, whatever it is called: the length of a header, then the header in JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _states(content: Any, name: str = "") -> Iterator[tuple[str, State]]:
    """The dictionaries with tensors in nested dictionaries, by their dotted names."""
    if not isinstance(content, Mapping):
        return
    if state := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
        yield name, state
    for key, value in content.items():
        yield from _states(value, f"{name}.{key}" if name else str(key))


def load_weights(
    model: nn.Module, path: str | PathLike[str], key: str | None = None, drop: Collection[str] = ()
) -> dict[str, str]:
    """Load a file into `model`: every name and shape of the model's state has to be there.

    The state may lie in dictionaries (`state_dict`, `model`, `ema`, …), its names may have prefixes (`module.`, `model.`, any other if
    it is the only one that fits), and the classifier may be called `fc`, `linear`, `classifier` or `head`. What stands beside it is left out.

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
    (states, metadata), own = read_weights(path), model.state_dict()
    found: dict[str, State] = {}  # dotted: the dictionary and the prefix of its keys → tensors by the model's names
    for name, state in states.items():
        for prefix in _prefixes(state, own):
            found[f"{name}.{prefix}".strip(".")] = _renamed(state, prefix, own)
    for part in drop:
        if not any(_within(name, [part]) for state in (own, *found.values()) for name in state):
            raise ValueError(f"drop={list(drop)}: neither {type(model).__name__} nor {path} has a part {part}")
    called = {name: name or "weights without a name" for name in found}
    if key is not None:
        found = {name: state for name, state in found.items() if f".{key}." in f".{name}."}
        if not found:
            raise ValueError(f"weights file {path} has no state {key} that fits; it has {', '.join(called.values())}")
    found = {name: {k: v for k, v in state.items() if not _within(k, drop)} for name, state in found.items()}
    problems = {name: _problems(state, own, drop) for name, state in found.items()}
    fitting = sorted((name for name in found if not problems[name]), key=_rank)
    if not fitting:
        nearest = problems[max(found, key=lambda name: sum(key in own for key in found[name]))]
        some = {kind: keys[:5] + [f"and {len(keys) - 5} more"] * (len(keys) > 5) for kind, keys in nearest.items()}
        said = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in some.items())
        if nearest.keys() == {"missing"}:  # a backbone, perhaps
            parts = sorted({name.partition(".")[0] for name in nearest["missing"]})
            said += f"; for a student, model.drop=[{','.join(parts)}] leaves what is missing as it starts"
        raise ValueError(f"weights file {path} is of another architecture; {said}")
    if len(fitting) > 1:
        first, second = fitting[:2]
        if _rank(first)[0] == _rank(second)[0] == 2:
            names = " and ".join(called[name] for name in fitting)
            raise ValueError(f"weights file {path} holds {names}, which all fit; weights_key={first} loads the first")
        log.warning("%s: loaded %s; weights_key=%s loads the other", path, called[first], called[second])
    model.load_state_dict({name: value for name, value in found[fitting[0]].items() if name in own}, strict=False)
    return metadata


def _prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What stands before names of the model in the names of a state, the most frequent first; "" is always among them."""
    heads: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(1, len(parts)):
            if ".".join(parts[start:]) in own or parts[start] in CLASSIFIERS:
                heads[".".join(parts[:start]) + "."] += 1
    return ["", *(head for head, _ in heads.most_common(20))]


def _renamed(state: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor]) -> State:
    """The tensors below a prefix, by the model's names; no counters that the model does not have."""
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    found = {key if key in own else WRAPPED.sub("", key): value for key, value in found.items()}
    present, needed = ([part for part in CLASSIFIERS if f"{part}.weight" in names] for names in (found, own))
    if len(present) == len(needed) == 1:
        found = {re.sub(rf"^{present[0]}\.", f"{needed[0]}.", key): value for key, value in found.items()}
    return {key: value for key, value in found.items() if not key.endswith(COUNTERS) or key in own}


def _problems(state: State, own: Mapping[str, Tensor], drop: Collection[str]) -> dict[str, list[str]]:
    """Why a state does not fit: kind of difference → names; empty if it does."""
    common = {key: value for key, value in state.items() if key in own}
    places = {key: (v.data_ptr(), v.dtype, v.shape, v.stride()) for key, v in own.items() if v.numel()}
    tied = {places.get(key) for key in common} - {None}  # layers that share their weights
    asked = [key for key in own if not _within(key, drop) and not key.endswith(COUNTERS)]
    problems = {
        "missing": [k for k in asked if k not in state and places.get(k) not in tied],
        "not in the model": [key for key in state if key not in own],
        "other shapes": [
            f"{key}: {list(value.shape)} in the file, {list(own[key].shape)} in the model"
            for key, value in common.items()
            if value.shape != own[key].shape
        ],
        "no floats, or not a number": [
            f"{key}: {value.dtype}"
            for key, value in common.items()
            if own[key].is_floating_point() and (not value.is_floating_point() or value.isnan().any())
        ],
    }
    return {kind: names for kind, names in problems.items() if names}


def _rank(name: str) -> tuple[int, int]:
    """0 for a name by which weights are known, 1 for that of an average, 2 for others; then the order in STATES."""
    parts = [part for part in name.split(".") if part]
    if any(part not in (*STATES, *AVERAGES) for part in parts):
        return 2, 0
    order = min((STATES.index(part) for part in parts if part in STATES), default=0)
    return int(any(part in AVERAGES for part in parts)), order


def _within(name: str, parts: Collection[str]) -> bool:
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def check_saveable(model: nn.Module) -> None:
    """Raises ValueError for state that is no tensor (`get_extra_state`): weights files hold tensors alone."""
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{type(model).__name__}: its state {key} is a {type(value).__name__}, no tensor")


def save_weights(path: str | PathLike[str], model: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write the model's state atomically as safetensors with metadata; equal weights give equal files.

    Weights that two layers share are written for each; loading them into the same network shares them again.

    Raises:
        ValueError: state that is no tensor.
        OSError: see `write_whole`.
    """
    check_saveable(model)
    # copies: safetensors takes no tensors that share memory
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    content = save(state, dict(metadata or {}))
    size = int.from_bytes(content[:8], "little")  # of the header, whose keys come in a random order
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    write_whole(Path(path), len(header).to_bytes(8, "little") + header + content[8 + size :])
