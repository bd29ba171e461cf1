"""A run's folder: named after its configuration, locked while it runs."""

import hashlib
import inspect
import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.errors import HydraException
from hydra.utils import get_object

from nst.config import NOT_IDENTITY, RunConfig, differences
from nst.files import write_whole

Config = dict[str, Any]

STUDENT = "student.safetensors"  # the trained weights, in the folder of a finished run
METRICS = "metrics.jsonl"  # every event of a run, one JSON object a line
DIVERGED = "diverged.json"  # step and reason, if a non-finite loss or gradient stopped the run
SUMMARY = "summary.json"  # of a finished run

# Seconds to wait for a lock: a killed process holds it until it has ended.
PATIENCE = 10.0


def identity(config: Mapping[str, Any], importable: Mapping[str, Any] | None = None) -> Config:
    """The run's identity: the resolved configuration without keys that do not change the result and keys at their default.

    So a key that is added later, with a default that changes nothing, renames no run. Defaults are those of the schema and of
    the components' own signatures; they must never change (a new default is a new key).

    Args:
        importable: for a configuration read from a file: only components that this one names, too, are imported.
    """
    result = json.loads(json.dumps(config))
    for dotted in NOT_IDENTITY:
        *parents, last = dotted.split(".")
        node = result
        for key in parents:
            node = node.get(key) or {}
        node.pop(last, None)
    knowledge = result.get("knowledge") or {}
    if knowledge.get("allow_large") is False:  # the default of earlier versions; as null, it changes how, not what
        knowledge.pop("allow_large")
    if result["teacher"]["model"] is None:
        result.pop("teacher")
    elif result["teacher"]["weights"] is not None:
        result["teacher"].pop("recipe", None)
    return _without_defaults(result, json.loads(json.dumps(asdict(RunConfig()))), _targets(importable or config))


def not_default(node: Mapping[str, Any], ignored: Collection[str] = ()) -> Config:
    """A component's arguments that differ from their default, without those in `ignored`."""
    defaults = _signature_defaults(node["_target_"])
    arguments = {key: _as_json(value) for key, value in node.items() if key not in ("_target_", *ignored)}
    return {key: value for key, value in arguments.items() if key not in defaults or defaults[key] != value}


def _targets(node: Any) -> set[str]:
    """All components that nested settings name."""
    if not isinstance(node, Mapping):
        return set()
    targets = {node["_target_"]} if isinstance(node.get("_target_"), str) else set()
    return targets.union(*(_targets(value) for value in node.values()))


def _without_defaults(node: Config, defaults: Mapping[str, Any], targets: set[str]) -> Config:
    """Nested settings without values equal to their default; values without a known default stay."""
    if node.get("_target_") in targets:
        defaults = {**defaults, **_signature_defaults(node["_target_"])}
    result: Config = {}
    for key, value in node.items():
        if isinstance(value, dict):
            inner = defaults.get(key)
            value = _without_defaults(value, inner if isinstance(inner, dict) else {}, targets)
            if value or not isinstance(inner, dict):
                result[key] = value
        elif key not in defaults or defaults[key] != value:
            result[key] = value
    return result


def _signature_defaults(target: str) -> Config:
    """The defaults of a component's arguments. None for torch's classes, whose defaults may change with the version."""
    if target.startswith("torch."):
        return {}
    with suppress(HydraException, ImportError, AttributeError, ValueError, TypeError):
        parameters = inspect.signature(get_object(target)).parameters.values()
        return {p.name: _as_json(p.default) for p in parameters if p.default is not p.empty}
    return {}


def _as_json(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return object()  # equal to nothing


def run_folder(config: Mapping[str, Any]) -> Path:
    """`outputs/<data>/<teacher>-<model>/<losses>/seed<k>-<hash>`."""
    teacher = (config["teacher"]["model"] or {}).get("name", "none")
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]
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
            ValueError: if it belongs to another configuration (the keys are named), or cannot be made.
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
        file = self.path / "config.json"
        if file.is_file():
            changed = differences(identity(read_json(file), importable=config), identity(config))
            if changed:
                raise ValueError(f"{self.path} holds a run of another configuration: {'; '.join(changed)}")
        else:
            write_whole(file, json.dumps(config, indent=1).encode())

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
            ValueError: it is damaged, or of another run.
        """
        file = self.path / SUMMARY
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
