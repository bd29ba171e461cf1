"""Model weights on disk: safetensors with metadata, and other people's checkpoints, read without running their code."""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nst.files import write_whole

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
        ValueError: missing, damaged (where the file has a checksum: one of ours, or a zip of `torch.save`), or a pickle
            that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (part := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"the checksum of its part {part} does not match")
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"weights file {path} holds more than tensors and plain values; loading it could run its code, so it is "
            "refused. Save only the state_dict, best as safetensors."
        ) from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"weights file {path} is damaged or no torch file: {error}") from error
    return _state_dict(content, path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as f:
            state, metadata = {key: f.get_tensor(key) for key in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"weights file {path} is damaged or no safetensors file: {error}") from error
    named = metadata.pop(CHECKSUM, None)
    if named is not None and named != (found := _checksum(state)):
        raise ValueError(f"weights file {path} is damaged: its tensors have SHA-256 {found}, not {named}")
    return state, metadata


def _checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key} {state[key].dtype} {list(state[key].shape)}\n".encode())
        digest.update(state[key].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"weights file {path} holds no state dict (found {type(content).__name__})")
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Load `path` into `model`, all keys and shapes matching; the classifier may be called `fc`, `linear` or `classifier`.

    Returns:
        The file's metadata (empty for torch files).

    Raises:
        ValueError: naming the keys that are missing, left over, or of another shape.
    """
    state, metadata = read_weights(path)
    expected = model.state_dict()
    state = _rename_classifier(state, expected)
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in expected and not k.endswith("num_batches_tracked")]
    shapes = [
        f"{k}: {list(v.shape)} in the file, {list(expected[k].shape)} in the model"
        for k, v in state.items()
        if k in expected and v.shape != expected[k].shape
    ]
    if missing or extra or shapes:
        problems = [f"missing: {_few(missing)}"] * bool(missing) + [f"not in the model: {_few(extra)}"] * bool(extra)
        problems += [f"other shapes: {_few(shapes)}"] * bool(shapes)
        raise ValueError(f"weights file {path} is of another architecture; " + "; ".join(problems))
    model.load_state_dict({k: v for k, v in state.items() if k in expected}, strict=False)
    return metadata


def _rename_classifier(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = ("fc", "linear", "classifier", "head")
    found = [n for n in names if f"{n}.weight" in state]
    wanted = [n for n in names if f"{n}.weight" in expected]
    if len(found) != 1 or len(wanted) != 1 or found == wanted:
        return state
    return {
        k.replace(f"{found[0]}.", f"{wanted[0]}.", 1) if k.startswith(f"{found[0]}.") else k: v
        for k, v in state.items()
    }


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def save_weights(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the model's state as safetensors with metadata and its checksum, complete or not at all."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    write_whole(path, _sorted_header(save(state, metadata | {CHECKSUM: _checksum(state)})))


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file with its header's keys in order (they come in a random one): equal weights give equal files."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]
