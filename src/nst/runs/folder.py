"""A run's folder: named by what the run is, locked while it runs."""

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

from nst.config import NOT_IDENTITY
from nst.errors import differences
from nst.files import write_whole

Config = dict[str, Any]

STUDENT = "student.safetensors"  # the trained weights, in the folder of a finished run

# Seconds to wait for a lock: a killed process may hold it until it is gone.
PATIENCE = 10.0


def identity(config: Config) -> Config:
    """The resolved configuration without the keys that do not change the result."""
    kept = json.loads(json.dumps(config))
    for dotted in NOT_IDENTITY:
        *parents, last = dotted.split(".")
        node = kept
        for key in parents:
            node = node.get(key) or {}
        node.pop(last, None)
    if kept["teacher"]["model"] is None:
        kept["teacher"] = None
    elif kept["teacher"]["weights"] is not None:
        kept["teacher"].pop("recipe")
    return kept


def run_folder(config: Config) -> Path:
    """`outputs/<data>/<teacher>-<model>/<losses>/seed<k>-<hash>`."""
    teacher = (config["teacher"]["model"] or {}).get("name", "none")
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]
    losses = "+".join(name for name in config["loss"] if name != "ce") or "ce"
    pair = f"{teacher}-{config['model']['name']}"
    return Path(config["outputs"]) / config["data"]["name"] / pair / losses / f"seed{config['seed']}-{digest}"


class RunLockedError(ValueError):
    """Another process is writing a run's folder."""


class RunFolder:
    """The folder of one run, held by one process (group) at a time."""

    def __init__(self, path: Path) -> None:
        """Nothing is made or written yet."""
        self.path = path
        self._lock: TextIO | None = None

    def open(self, config: Config) -> None:
        """Make the folder, lock it, and write `config.json`.

        Raises:
            RunLockedError: if another process holds it.
            ValueError: if it belongs to another configuration (the keys are named).
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("a+")
        if not _locked(self._lock):
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self.close()
            raise RunLockedError(f"{self.path} is being written by another process ({holder})")
        self._lock.truncate(0)
        self._lock.write(f"pid {os.getpid()} on {os.uname().nodename}\n")
        self._lock.flush()
        file = self.path / "config.json"
        if file.is_file():
            changed = differences(identity(_read_json(file)), identity(config))
            if changed:
                raise ValueError(f"{self.path} holds a run of another configuration: {'; '.join(changed)}")
        else:
            write_whole(file, json.dumps(config, indent=1).encode())

    def held(self) -> bool:
        """Whether another process is writing it at this moment."""
        try:
            with (self.path / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def summary(self) -> dict[str, Any] | None:
        """What a finished run left; None while it is not finished."""
        file = self.path / "summary.json"
        return _read_json(file) if file.is_file() else None


def _locked(file: TextIO) -> bool:
    """Take the lock of a file; False when another process keeps it."""
    last = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > last:
                return False
            time.sleep(0.1)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); delete it and start again: the checkpoints stay") from error
