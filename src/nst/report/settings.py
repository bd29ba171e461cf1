"""The settings that a table states: weights of the loss, learning rate, length."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]


def weights(config: Record) -> dict[str, float]:
    """Term of the loss → its weight λ; the cross-entropy only where its weight is not 1."""
    terms = {name: float(node["weight"]) for name, node in config["loss"].items()}
    return {name: weight for name, weight in terms.items() if name != "ce" or weight != 1}


def schedule(config: Record) -> str:
    """The name of the learning-rate schedule, "" where there is none."""
    node = config.get("schedule") or config["optim"].get("schedule") or ""
    name = node.get("name", node.get("_target_", "")) if isinstance(node, dict) else node
    return str(name).split(".")[-1].lower()


def shown(config: Record, test_images: int | None) -> dict[str, str]:
    """The settings that a result page states, as text; keys that a configuration lacks are omitted."""
    trainer, rate, name = config["trainer"], config["optim"].get("lr"), schedule(config)
    held_out = 100 * (config["data"].get("validation") or 0)
    texts = {
        "epochs": trainer["epochs"],
        "learning rate": None if rate is None else f"{number(rate)}{f' ({name})' if name else ''}",
        "batch size": trainer.get("batch_size"),
        "training images": config["data"].get("limit") or (f"all but {held_out:.3g} % held out" if held_out else "all"),
        "test images": None if test_images is None else f"{test_images:,}",
    }
    return {key: str(text) for key, text in texts.items() if text is not None}


def as_typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def taps_text(layers: Sequence[Mapping[str, Any]]) -> str:
    """Pairs of layers: their names, the teacher's first where they differ, and a weight that is not 1."""
    texts = []
    for layer in layers:
        names, weight = dict.fromkeys((str(layer["teacher"]), str(layer["student"]))), layer.get("weight", 1)
        texts.append("→".join(names) + ("" if weight == 1 else f"×{number(weight)}"))
    return ",".join(texts)


def number(value: Any) -> str:
    """A number in its shortest form; anything else unchanged."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)
