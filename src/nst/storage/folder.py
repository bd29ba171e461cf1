"""A run's folder: named after its configuration, locked while it runs; what the files in it are called, and how a run is judged."""

import inspect
import json
import os
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.errors import HydraException
from hydra.utils import get_object

from nst.config import RunConfig
from nst.files import digest, sha256_of, write_whole

CONFIG = "config.json"  # the resolved configuration
STUDENT = "student.safetensors"  # the trained weights, in the folder of a finished run
BEST = "best.safetensors"  # the weights of the best epoch
METRICS = "metrics.jsonl"  # every event of a run, one JSON object a line
DIVERGED = "diverged.json"  # step and reason, if a non-finite loss or gradient stopped the run
SUMMARY = "summary.json"  # of a finished run
MEASURES = {"top1": "top-1", "knn": "k-NN", "loss": "loss"}
LEAD = 5.0  # points above chance; losing half of less may be noise
PATIENCE = 10.0  # seconds to wait for a lock: a killed process holds it until it has ended


def run_folder(config: Mapping[str, Any]) -> Path:
    """`outputs/<data>/<teacher>-<model>/<losses>/seed<k>-<hash>`."""
    teacher = (config["teacher"]["model"] or {}).get("name", "none")
    losses = "+".join(name for name in config["loss"] if name != "ce") or "ce"
    pair, run = f"{teacher}-{config['model']['name']}", f"seed{config['seed']}-{digest(run_key(config))}"
    return Path(config["outputs"]) / config["data"]["name"] / pair / losses / run


def run_key(config: Mapping[str, Any]) -> dict[str, Any]:
    """What names a run: the resolved configuration without keys that do not change the result and keys at their default.

    So a key that is added later renames no run. Which keys are left out is marked in the schema (`nst.config.setting`).
    """
    key = not_default(json.loads(json.dumps(config)), schema=RunConfig)
    if config["teacher"]["model"] is None:
        key.pop("teacher", None)
    elif config["teacher"]["weights"] is not None:
        key["teacher"].pop("train", None)
    if config["trainer"].get("patience") is not None:  # it counts evaluations
        key["trainer"]["eval_every"] = config["trainer"]["eval_every"]
    return key


def not_default(node: Mapping[str, Any], ignored: Collection[str] = (), schema: Any = None) -> dict[str, Any]:
    """The settings of a schema, of a component, or of several by name, that differ from their default, without those in `ignored`.

    Defaults are the schema's or the component's signature's. Torch's stay, since they may change, and those of what is not imported:
    a stored configuration must not run code. A file of weights is named by its SHA-256, one that is not there by its path.
    """
    target, known = str(node.get("_target_", "torch.")), {f.name: f for f in fields(schema)} if schema else {}
    defaults = dict(vars(schema())) if schema else {}
    if not target.startswith("torch.") and (target.startswith("nst.") or target.rpartition(".")[0] in sys.modules):
        with suppress(HydraException, ImportError, AttributeError, ValueError, TypeError):
            parameters = inspect.signature(get_object(target)).parameters.values()
            defaults |= {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
    defaults["lr_factors"] = None  # of an optimizer, whatever its class
    key: dict[str, Any] = {}
    for name, value in node.items():
        field = known.get(name)
        marks, kind = (field.metadata, field.type) if field else ({}, None)
        if name in ignored or not marks.get("key", True):
            continue
        if is_dataclass(kind):
            if inner := not_default(value, schema=kind):
                key[name] = inner
        elif name not in defaults or defaults[name] != value:
            key[name] = not_default(value, marks.get("unnamed", ())) if isinstance(value, dict) else value
    if isinstance(path := key.get("weights"), str) and Path(path).is_file():
        found = Path(path).stat()
        key["weights"] = _sha256(path, found.st_size, found.st_mtime_ns)
    return key


@cache
def _sha256(path: str, size: int, changed: int) -> str:
    """Of a file; read once as long as its size and time stay."""
    return sha256_of(path)


class RunLockedError(ValueError):
    """Another process is writing a run's folder."""


class RunFolder:
    """The folder of one run, locked by one process (group) at a time."""

    def __init__(self, path: Path) -> None:
        """Nothing is written yet."""
        self.path, self._lock = path, FileLock(path / "lock")

    def open(self, config: Mapping[str, Any]) -> None:
        """Make the folder, lock it, and write `config.json`. Raises RunLockedError; ValueError if it cannot be made."""
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
        with suppress(Timeout):
            if (self.path / "lock").exists():
                self._lock.acquire(timeout=0).lock.release()
            return False
        return True

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None if it or its weights are missing. Raises ValueError: damaged, or of another run."""
        file = self.path / SUMMARY
        if not file.is_file() or not (self.path / STUDENT).is_file():
            return None
        summary = read_json(file)
        if (name := Path(str(summary.get("folder"))).name) != self.path.name:
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
