"""The settings that tables and listings state, as text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]


def stated(settings: Mapping[str, Any], test_images: int | None = None) -> dict[str, str]:
    """The settings that a result states; those that a run lacks are omitted.

    Args:
        settings: by dotted key.
        test_images: number of test images; None: not known.
    """
    held_out = 100 * (settings.get("data.validation") or 0)
    clip = settings.get("trainer.clip_grad_norm")
    texts = {
        "epochs": settings.get("trainer.epochs"),
        "learning rate": rate(settings),
        "weight decay": _shortest(settings.get("optim.weight_decay")),
        "batch size": settings.get("trainer.batch_size"),
        "gradient norm clipped at": None if clip is None else _shortest(clip),
        "precision": settings.get("trainer.precision"),
        "training images": settings.get("data.limit") or (f"all but {held_out:.3g} % held out" if held_out else "all"),
        "test images": None if test_images is None else f"{test_images:,}",
    }
    return {key: str(text) for key, text in texts.items() if text is not None}


def rate(settings: Mapping[str, Any]) -> str | None:
    """The learning rate with its schedule: "0.1 (cosine)"; None where there is none."""
    value = settings.get("optim.lr")
    name = str(settings.get("schedule._target_", "")).rpartition(".")[2].lower()
    return None if value is None else f"{_shortest(value)}{f' ({name})' if name else ''}"


def weights_text(weights: Mapping[str, float]) -> str:
    """λ of each term: "kd 16 + nst_poly 50"; "" where there is none."""
    return " + ".join(f"{name} {_shortest(weight)}" for name, weight in weights.items())


def as_text(value: Any) -> str:
    """A value as it is typed; of pairs of layers the names, the teacher's first where they differ, and a weight that is not 1."""
    if (
        isinstance(value, Sequence)
        and value
        and all(isinstance(v, Mapping) and {"teacher", "student"} <= v.keys() for v in value)
    ):
        names = ["→".join(dict.fromkeys((str(pair["teacher"]), str(pair["student"])))) for pair in value]
        factors = ["" if pair.get("weight", 1) == 1 else f"×{_shortest(pair['weight'])}" for pair in value]
        return ",".join(name + factor for name, factor in zip(names, factors, strict=True))
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _shortest(value: Any) -> str | None:
    return None if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)
