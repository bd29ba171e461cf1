"""What a run has left behind, in a form that two runs can be compared in bit for bit."""

import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from nst.storage.checkpoint import Checkpoints


def rows(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock has measured."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "timing"} for row in events]


def board(run: Path) -> list[tuple[str, int, float]]:
    """TensorBoard's scalars over all event files, sorted, without what a clock has measured."""
    files = sorted((run / "tensorboard").iterdir())
    events = [event for file in files for event in LegacyEventFileLoader(str(file)).Load()]
    values = [(value.tag, event.step, value.simple_value) for event in events for value in event.summary.value]
    return sorted(value for value in values if "timing" not in value[0])


def tensors(state: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists; tensors as bytes."""
    if isinstance(state, dict | list):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, value in items for k, v in tensors(value, f"{name}.{key}").items()}
    if isinstance(state, torch.Tensor):
        return {name: (state.dtype, state.shape, state.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())}
    return {name: state}


def outcome(run: Path) -> dict[str, Any]:
    """All of a finished run."""
    checkpoint = Checkpoints(run).latest()
    assert checkpoint is not None
    state = checkpoint[1]
    state["progress"].pop("seconds")
    scalars = board(run)
    assert len({value[:2] for value in scalars}) == len(scalars), "TensorBoard holds a step twice"
    summary = json.loads((run / "summary.json").read_text())
    return {
        "weights": (run / "student.safetensors").read_bytes(),
        "metrics": rows(run),
        "board": scalars,
        "test": summary["test"],
        "best": summary["best"],
        "steps": summary["steps"],
        **tensors(
            {
                key: state[key]
                for key in ("progress", "distiller", "optimizer", "sums", "scaler", "ema", "last", "about")
            }
        ),
    }


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what differs."""
    return [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
