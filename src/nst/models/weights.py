"""Model weights on disk: safetensors with metadata, and foreign checkpoints, read without running their code."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nst.files import write_whole
from nst.models.torch_files import NotPlainError, load_plain

# Wrappers that training code puts around a state dict, and prefixes it leaves on the keys.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.")
CHECKSUM = "sha256_of_tensors"  # in the metadata of the files we write


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict and its metadata.

    Args:
        path: `.safetensors`, or a file of `torch.save` with tensors and plain values only. A state dict inside
            `state_dict`, `model` or `net` is unwrapped; the prefixes `module.`, `_orig_mod.` and `model.` are dropped.

    Raises:
        ValueError: missing, damaged (if the file has a checksum: one of ours, or a zip of `torch.save`), a pickle that
            would run code, or one that needs more memory than its file has bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist" + " (it is a folder)" * path.is_dir())
    if not path.stat().st_size:
        raise ValueError(f"weights file {path} is empty")
    kind = "safetensors" if path.suffix == ".safetensors" else "torch"
    try:
        if kind == "safetensors":
            return _read_safetensors(path)
        with path.open("rb") as file:
            return _state_dict(load_plain(file)), {}
    except NotPlainError as error:
        raise ValueError(
            f"weights file {path} holds more than tensors and plain values ({error}); loading it could run its code, so it is "
            "refused. Only the state dict is needed. If you trust the file, save the state dict alone, by its key: "
            "import torch; torch.save(torch.load('old.pth', weights_only=False)['model'], 'new.pth')"
        ) from error
    except _WrongContent as error:
        raise ValueError(f"weights file {path} {error}") from error
    except OSError as error:
        raise ValueError(f"weights file {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # on a damaged file a parser may raise nearly anything
        message = str(error).partition("\n")[0][:200]
        reason = message if " " in message else f"it cannot be parsed ({type(error).__name__} {message})"
        raise ValueError(f"weights file {path} is damaged or no {kind} file: {reason}") from error


class _WrongContent(Exception):
    """An error in a weights file that could be parsed; the message follows the file's name."""


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as f:
        state, metadata = {key: f.get_tensor(key) for key in f.keys()}, f.metadata() or {}  # noqa: SIM118
    named = metadata.pop(CHECKSUM, None)
    if named is not None and named != (digest := _checksum(state)):
        raise _WrongContent(f"is damaged: its tensors have SHA-256 {digest}, not {named}")
    for key in ("mean", "std"):  # normalisation of the training data, see `nst.runs.teacher`
        if key in metadata and not re.fullmatch(r"[-+\d.e]+(,[-+\d.e]+)*", metadata[key]):
            raise _WrongContent(f"is damaged: its metadata has {key}={metadata[key][:80]!r}, numbers are needed")
    return state, metadata


def _checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key} {state[key].dtype} {list(state[key].shape)}\n".encode())
        digest.update(state[key].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state_dict(content: Any) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise _WrongContent(f"holds no state dict (found {type(content).__name__})")
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise _WrongContent(f"holds {key} as a {value.layout} tensor on {value.device}; plain tensors are needed")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Load `path` into `model`, all keys and shapes matching; the classifier may be called `fc`, `linear` or `classifier`.

    Returns:
        The file's metadata (empty for torch files).

    Raises:
        ValueError: names the keys that are missing, unexpected, or of another shape.
    """
    check_saveable(model)
    state, metadata = read_weights(path)
    expected = model.state_dict()
    state = _rename_classifier(state, expected)
    tied = {_place(expected[k]) for k in state if k in expected}
    missing = [
        k
        for k, v in expected.items()
        if k not in state and not k.endswith("num_batches_tracked") and not (v.numel() and _place(v) in tied)
    ]
    extra = [k for k in state if k not in expected and not k.endswith("num_batches_tracked")]
    shared = [(k, v, expected[k]) for k, v in state.items() if k in expected]
    shapes = [
        f"{k}: {list(v.shape)} in the file, {list(parameter.shape)} in the model"
        for k, v, parameter in shared
        if v.shape != parameter.shape
    ]
    types = [
        f"{k}: {v.dtype} in the file, {parameter.dtype} in the model"
        for k, v, parameter in shared
        if parameter.is_floating_point() and not v.is_floating_point()
    ]
    problems = [("missing", missing), ("not in the model", extra), ("other shapes", shapes), ("other types", types)]
    if any(names for _, names in problems):
        differences = "; ".join(f"{kind}: {_few(names)}" for kind, names in problems if names)
        raise ValueError(f"weights file {path} is of another architecture; {differences}")
    model.load_state_dict({k: v for k, v in state.items() if k in expected}, strict=False)
    return metadata


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that share their memory."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def check_saveable(model: nn.Module) -> None:
    """Raises ValueError for state that is no tensor (`get_extra_state`): weights files hold tensors alone."""
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{type(model).__name__}: its state {key} is a {type(value).__name__}, but weights files hold tensors alone; "
                "let get_extra_state return a tensor, or use a buffer"
            )


def _rename_classifier(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = ("fc", "linear", "classifier", "head")
    present = [n for n in names if f"{n}.weight" in state]
    needed = [n for n in names if f"{n}.weight" in expected]
    if len(present) != 1 or len(needed) != 1 or present == needed:
        return state
    return {
        k.replace(f"{present[0]}.", f"{needed[0]}.", 1) if k.startswith(f"{present[0]}.") else k: v
        for k, v in state.items()
    }


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def save_weights(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the model's state atomically as safetensors with metadata and its checksum.

    Weights that two layers share are written for each; loading them into the same network shares them again.

    Raises:
        ValueError: state that is no tensor.
        OSError: see `write_whole`.
    """
    check_saveable(model)
    state: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in model.state_dict().items():
        plain = value.detach().cpu().contiguous()
        start = plain.untyped_storage().data_ptr()
        state[key] = plain.clone() if start in storages else plain
        storages.add(start)
    write_whole(path, _sorted_header(save(state, metadata | {CHECKSUM: _checksum(state)})))


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file with its header's keys in order (they come in a random one): equal weights give equal files."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]
