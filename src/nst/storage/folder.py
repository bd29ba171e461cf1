"""A run's folder: named after its configuration, locked while it runs."""

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.errors import HydraException
from hydra.utils import get_object

from nst.config import RunConfig
from nst.files import sha256_of, write_whole

Config = dict[str, Any]

CONFIG = "config.json"  # the resolved configuration
STUDENT = "student.safetensors"  # the trained weights, in the folder of a finished run
BEST = "best.safetensors"  # the weights of the best epoch
METRICS = "metrics.jsonl"  # every event of a run, one JSON object a line
DIVERGED = "diverged.json"  # step and reason, if a non-finite loss or gradient stopped the run
SUMMARY = "summary.json"  # of a finished run

LEAD = 5.0  # points above chance; losing half of less may be noise
MEASURES = {"top1": "top-1", "knn": "k-NN", "loss": "loss"}

# Seconds to wait for a lock: a killed process holds it until it has ended.
PATIENCE = 10.0


def run_key(config: Mapping[str, Any]) -> Config:
    """What names a run: the resolved configuration without keys that do not change the result and keys at their default.

    So a key that is added later, with a default that changes nothing, renames no run. Which keys are left out is marked in the
    schema (`nst.config.setting`); defaults are those of the schema and of the components' own signatures. Weights files are named by
    their SHA-256, so they may be moved; one that is not there by its path.
    """
    key = _of_schema(RunConfig, json.loads(json.dumps(config)))
    key |= {part: by_content(key[part]) for part in ("model", "teacher") if part in key}
    if config["teacher"]["model"] is None:
        key.pop("teacher", None)
    elif config["teacher"]["weights"] is not None:
        key["teacher"].pop("train", None)
    if config["trainer"].get("patience") is not None:  # it counts evaluations
        key["trainer"]["eval_every"] = config["trainer"]["eval_every"]
    return key


def by_content(node: Any) -> Any:
    """Nested settings of networks with the SHA-256 of weights files for their paths."""
    if not isinstance(node, dict):
        return node
    named = {key: by_content(value) for key, value in node.items()}
    if isinstance(path := named.get("weights"), str) and Path(path).is_file():
        found = Path(path).stat()
        named["weights"] = _sha256(path, found.st_size, found.st_mtime_ns)
    return named


@cache
def _sha256(path: str, size: int, changed: int) -> str:
    """Of a file; read once as long as its size and time stay."""
    return sha256_of(path)


def _of_schema(schema: Any, values: Config) -> Config:
    key: Config = {}
    for f in fields(schema):
        if f.name not in values or not f.metadata.get("key", True):
            continue
        value = values[f.name]
        if is_dataclass(f.type):
            if inner := _of_schema(f.type, value):
                key[f.name] = inner
        elif isinstance(value, dict):
            unnamed = f.metadata.get("unnamed", ())
            key[f.name] = _without_defaults({name: v for name, v in value.items() if name not in unnamed})
        elif value != (f.default if f.default_factory is MISSING else f.default_factory()):
            key[f.name] = value
    return key


def not_default(node: Mapping[str, Any], ignored: Collection[str] = ()) -> Config:
    """A component's arguments that differ from their default, without those in `ignored`."""
    return {k: v for k, v in _without_defaults(node).items() if k not in ("_target_", *ignored)}


def _without_defaults(node: Mapping[str, Any]) -> Config:
    """A component, or several by name, without the arguments equal to the default in its signature.

    Torch's defaults stay, since they may change with the version, and those of what needs another import: a stored configuration must
    not run code.
    """
    target, defaults = str(node.get("_target_", "torch.")), Config()
    if not target.startswith("torch.") and (target.startswith("nst.") or target.rpartition(".")[0] in sys.modules):
        with suppress(HydraException, ImportError, AttributeError, ValueError, TypeError):
            parameters = inspect.signature(get_object(target)).parameters
            defaults = {
                name: list(p.default) if isinstance(p.default, tuple) else p.default for name, p in parameters.items()
            }
    defaults["lr_factors"] = None  # of an optimizer, whatever its class
    return {
        name: _without_defaults(value) if isinstance(value, dict) else value
        for name, value in node.items()
        if name not in defaults or defaults[name] != value
    }


def run_folder(config: Mapping[str, Any]) -> Path:
    """`outputs/<data>/<teacher>-<model>/<losses>/seed<k>-<hash>`."""
    teacher = (config["teacher"]["model"] or {}).get("name", "none")
    digest = hashlib.sha256(json.dumps(run_key(config), sort_keys=True).encode()).hexdigest()[:8]
    losses = "+".join(name for name in config["loss"] if name != "ce") or "ce"
    pair = f"{teacher}-{config['model']['name']}"
    return Path(config["outputs"]) / config["data"]["name"] / pair / losses / f"seed{config['seed']}-{digest}"


class RunLockedError(ValueError):
    """Another process is writing a run's folder."""


class RunFolder:
    """The folder of one run, locked by one process (group) at a time."""

    def __init__(self, path: Path) -> None:
        """Nothing is written yet."""
        self.path = path
        self._lock = FileLock(path / "lock")

    def open(self, config: Config) -> None:
        """Make the folder, lock it, and write `config.json`.

        Raises:
            RunLockedError: if another process has locked it.
            ValueError: if it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"outputs: {self.path} cannot be made ({error.strerror}); pass outputs=FOLDER") from error
        holder = self.path / "holder"
        try:
            self._lock.acquire(timeout=PATIENCE, poll_interval=0.1)
        except Timeout:
            owner = holder.read_text(errors="replace").strip() if holder.is_file() else "unknown"
            raise RunLockedError(f"{self.path} is being written by another process ({owner})") from None
        for unfinished in self.path.glob("*.tmp"):  # left by a killed process
            unfinished.unlink()
        write_whole(holder, f"pid {os.getpid()} on {os.uname().nodename}\n".encode())
        if not (self.path / CONFIG).is_file():
            write_whole(self.path / CONFIG, json.dumps(config, indent=1).encode())

    def is_locked(self) -> bool:
        """Whether another process has locked it."""
        if not (self.path / "lock").exists():
            return False
        try:
            with self._lock.acquire(timeout=0):
                return False
        except Timeout:
            return True

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None if it is not finished or its weights are missing.

        Raises:
            ValueError: it or the configuration beside it is damaged, or it is of another run.
        """
        file = self.path / SUMMARY
        if (self.path / CONFIG).is_file():
            read_json(self.path / CONFIG, "delete it: the run's command writes it again")
        if not file.is_file():
            return None
        summary = read_json(file)
        if not (self.path / STUDENT).is_file():
            return None
        name = Path(str(summary.get("folder"))).name
        if name != self.path.name:
            raise ValueError(f"{file} is of another run ({name}); delete it and start again: the checkpoints stay")
        return summary | {"folder": str(self.path)}  # where it is now


def read_json(file: Path, remedy: str = "delete it and start again: the checkpoints stay") -> dict[str, Any]:
    """A JSON file that holds an object. Raises ValueError, naming it, where it does not."""
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
        return content
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); {remedy}") from error


def measure_of(values: Mapping[str, Any]) -> str:
    """By which of an evaluation's values the best epoch is chosen: "top1", else "knn", else "loss"."""
    return next((name for name in ("top1", "knn") if values.get(name) is not None), "loss")


def measured(measure: str, value: float) -> str:
    """Such a value with the name of its measure."""
    return f"loss {value:.4g}" if measure == "loss" else f"{MEASURES[measure]} {value:.2f} %"


def has_collapsed(top1: float, best: float, chance: float) -> bool:
    """Whether more than half of the best accuracy above chance before is lost, if that was `LEAD` points or more; all in percent."""
    return best - chance >= LEAD and top1 - chance < (best - chance) / 2
