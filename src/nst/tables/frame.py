"""The frame of runs: one row a run, read once from its folder. All that lists, compares or draws runs is made from it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd

from nst.config import UNNAMED
from nst.files import flat
from nst.storage.folder import DIVERGED, METRICS, SUMMARY, has_collapsed, measure_of
from nst.tables.statistics import Frame

Record = dict[str, Any]

COLUMNS = [
    "folder", "data", "teacher", "model", "loss", "seed", "epochs", "settings", "weights", "chance", "curve", "train", "state",
    "measure", "diverged", "collapsed", "test", "last", "best", "best_epoch", "top5", "test_images", "evaluated_on", "seconds", "steps",
    "commit", "versions", "hardware", "taught_by", "data_key", "data_sha256", "teacher_key", "teacher_sha256",
]  # fmt: skip


def read_frame(folders: Iterable[Path], damaged: list[str] | None = None) -> Frame:
    """A row for each of these runs that has a configuration, see `read_run`.

    `damaged` takes a line for each run that cannot be read, which has no row then; without it that is a ValueError.
    """
    runs = []
    for folder in folders:
        try:
            if (folder / "config.json").exists():
                runs.append(read_run(folder))
        except ValueError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
    return pd.DataFrame(runs, columns=COLUMNS)


def read_run(folder: Path) -> Record:
    """A run as `COLUMNS`, some of which only a finished one has. Raises ValueError, with file and key, for a damaged file.

    settings are those that distinguish runs, by dotted key; weights: λ by term, the cross-entropy's only where it is not 1;
    train: accuracy on the training crops over the last epoch; state: "finished", "epoch 3 of 15", "diverged after …"; diverged:
    the reason, or None. Accuracies are in percent, by measure: "top1", of a student that learns features alone "knn" or, without
    labels, its "loss"; last is on the test images, of a run that is not finished on those of its evaluations (curve, by epoch).
    """
    with opened(folder / "config.json") as config:
        taught = config["teacher"]["model"]
        given = bool(taught) and config["teacher"].get("weights") is not None  # else it was trained on these images
        weights = {name: float(node["weight"]) for name, node in config["loss"].items()}
        classes, epochs = config["data"].get("num_classes"), int(config["trainer"]["epochs"])
        unused = (*UNNAMED, "seed", *(() if taught else ("teacher", "cache")), *(("teacher.train",) if given else ()))
        settings = {
            key: value for key, value in flat(config).items()
            if value is not None and not any(f"{key}.".startswith(f"{name}.") for name in unused)
        }  # fmt: skip
        run: Record = {
            "folder": str(folder), "data": config["data"]["name"], "model": config["model"]["name"],
            "teacher": taught["name"] if taught else "none",
            "loss": "+".join(name for name in weights if name != "ce") or "ce",
            "seed": int(config["seed"]), "epochs": epochs, "settings": settings,
            "weights": {name: weight for name, weight in weights.items() if name != "ce" or weight != 1},
            "chance": 100 / classes if classes else None,
        }  # fmt: skip
    events = _events(folder / METRICS)
    evaluations = [event for event in events if event.get("kind") == "eval"]
    measure = measure_of(evaluations[-1]) if evaluations else "top1"
    curve, choose = {event["epoch"]: event[measure] for event in evaluations}, min if measure == "loss" else max
    steps = [event for event in events if event.get("kind") == "train"]
    crops = [event["top1"] for event in steps if event["epoch"] > epochs - 1 and "top1" in event]
    progress = f"epoch {max(curve, default=0):g} of {epochs}"
    run |= {
        "curve": curve, "train": sum(crops) / len(crops) if crops else None, "state": progress, "diverged": None,
        "measure": measure, "collapsed": measure != "loss" and collapsed(curve.values(), run["chance"]),
        "last": list(curve.values())[-1] if curve else None, "best": choose(curve.values(), default=None),
        "best_epoch": choose(curve, key=lambda epoch: curve[epoch], default=None),
        "seconds": steps[-1].get("timing", {}).get("seconds") if steps else None,
    }  # fmt: skip
    if (folder / DIVERGED).exists():
        with opened(folder / DIVERGED) as stop:
            run |= {"diverged": str(stop["reason"]), "state": f"diverged after {progress}"}
    if (folder / SUMMARY).exists():
        with opened(folder / SUMMARY) as summary:
            test, best, teacher = summary["test"], summary["best"], summary["teacher"]
            measure, usual = measure_of(test), {"top1": None, "top5": None, "evaluated_on": "test"}
            about = teacher and {key: teacher[key] for key in ("name", "parameters", "weights", "sha256")}
            run |= {
                **{key: summary[key] for key in ("evaluated_on", "steps", "commit", "versions", "hardware")},
                "state": "finished", "diverged": None, "seconds": float(summary["seconds"]),
                "test": float(test[measure]), "last": float(test[measure]), "top5": test.get("top5"),
                "test_images": test.get("images"), "best": float(best[measure]), "best_epoch": best["epoch"],
                "taught_by": teacher and about | {key: teacher.get(key, value) for key, value in usual.items()},
                "data_sha256": (summary.get("data") or {}).get("sha256"), "teacher_sha256": teacher and teacher["sha256"],
            }  # fmt: skip
    images, teacher = ({k: v for k, v in settings.items() if k.startswith(p)} for p in ("data.", "teacher."))
    run["data_key"] = json.dumps(images, sort_keys=True)
    run["teacher_key"] = json.dumps([teacher, None if given else images], sort_keys=True)
    return run


@contextmanager
def opened(file: Path) -> Iterator[Record]:
    """What a JSON file holds. Raises ValueError, naming file and key, for whatever is wrong with it."""
    try:
        yield json.loads(file.read_bytes())
    except KeyError as error:
        raise ValueError(f"{file} is damaged: {error.args[0]} is missing") from error
    except (AttributeError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _events(file: Path) -> list[Record]:
    """The lines of `metrics.jsonl` with an epoch and an accuracy or loss; one that was cut off by a crash is left out."""
    events: list[Record] = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        try:
            event = json.loads(line)
            if isinstance(event["epoch"], int | float) and isinstance(event[measure_of(event)], int | float):
                events.append(event)
        except (KeyError, RecursionError, TypeError, ValueError):
            continue
    return events


def collapsed(accuracies: Iterable[float], chance: float | None) -> bool:
    """Whether an evaluation lost more than half of the best lead over chance before it; False where chance is unknown."""
    found = [*accuracies]
    before = accumulate(found, max, initial=0.0)
    return chance is not None and any(has_collapsed(*pair, chance) for pair in zip(found, before, strict=False))


def other_contents(runs: Frame) -> Iterator[tuple[str, Frame]]:
    """Runs that name the same data, or teacher, whose files changed under that name: ("data" or "teacher", those runs)."""
    for kind in ("data", "teacher") if len(runs) else ():
        for _, same in runs[runs[f"{kind}_sha256"].notna()].groupby(f"{kind}_key", sort=False):
            if same[f"{kind}_sha256"].nunique() > 1:
                yield kind, same


def rate(settings: Mapping[str, Any]) -> str | None:
    """The learning rate with its schedule: "0.1 (cosine)"; None where there is none."""
    name = str(settings.get("schedule._target_", "")).rpartition(".")[2].lower()
    return f"{settings['optim.lr']:g}{f' ({name})' if name else ''}" if "optim.lr" in settings else None


def weights_text(weights: Mapping[str, float]) -> str:
    """λ of each term: "kd 16 + nst_poly 50"; "" where there is none."""
    return " + ".join(f"{name} {weight:g}" for name, weight in weights.items())


def as_text(value: Any) -> str:
    """A value as it is typed; of pairs of layers the names, the teacher's first where they differ, and a weight that is not 1."""
    pairs = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if pairs and all(isinstance(pair, Mapping) and {"teacher", "student"} <= pair.keys() for pair in pairs):
        names = ["→".join(dict.fromkeys((str(pair["teacher"]), str(pair["student"])))) for pair in pairs]
        factors = ["" if pair.get("weight", 1) == 1 else f"×{pair['weight']:g}" for pair in pairs]
        return ",".join(name + factor for name, factor in zip(names, factors, strict=True))
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
