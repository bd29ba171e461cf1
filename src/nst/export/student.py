"""Export of a run's student: write the files, load them again, compare, time, describe."""

import io
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.markdown import Markdown
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nst import build
from nst.config import ExportConfig, check_ranges
from nst.data.batch import Split, scale_and_shift
from nst.data.dataset import Dataset
from nst.evaluate import worst_classes
from nst.export import formats
from nst.export.formats import FILES, Forward
from nst.export.inference import preprocessing
from nst.files import sha256_of, write_whole
from nst.finished import MODEL, FinishedRun, finished_run
from nst.models.weights import read_weights, save_weights
from nst.storage.folder import measure_of, measured as shown_as
from nst.storage.record import provenance

CARD = "MODEL_CARD.md"
TOLERANCE = 1e-3  # of the largest logit: more than rounding in 32 bits
CHUNK = 100  # images at a time when two networks are compared
BATCHES = (1, 32)  # sizes that are timed
WARM_UP, LEAST, SECONDS = 3, 5, 10.0  # calls before the clock runs, the fewest timed, about the longest time of a size


def export(settings: ExportConfig) -> dict[str, Any]:
    """Write the files, `model.json` and the model card; print and return the measurements, which are `measured` in `model.json`.

    Raises:
        ValueError: a setting out of range, a run that is not finished, a format that can't be written, a file of 32 bits that disagrees.
    """
    check_ranges(settings, "")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no CUDA device")
    names = formats.formats_to_write(settings.formats)
    run = finished_run(settings.run, settings.root, settings.weights)
    data, student, node = build.dataset(run.settings), run.student(), build.without_weights(run.settings.model)
    about: dict[str, Any] = {
        "target": node["_target_"],
        "arguments": {key: value for key, value in node.items() if key not in ("name", "_target_")},
        "files": {name: FILES[name] for name in names},
        "weights": FILES["safetensors"] if "safetensors" in names else None,
        "normalize": settings.normalize,  # True: files other than the weights take pixels / 255
        "input": {
            "shape": ["batch", *run.image_shape],
            "dtype": "float32",
            "values": "(pixel / 255 - mean) / std, by channel",
            **asdict(preprocessing(run.settings.data)),
        },
        "output": {
            "shape": ["batch", student(torch.zeros(1, *run.image_shape)).shape[1]],
            "values": "features" if run.settings.model.get("features_only") else "logits",
        },
        "classes": run.classes(data),
    }
    folder = Path(settings.to) if settings.to else run.folder / "export"
    print(f"writing {', '.join(names)}; each is then loaded again, compared and timed", flush=True)
    for name in (*FILES.values(), MODEL, CARD):
        (folder / name).unlink(missing_ok=True)
    if "safetensors" in names:
        save_weights(folder / FILES["safetensors"], student, read_weights(run.weights)[1])
        about["sha256"] = sha256_of(folder / FILES["safetensors"])
    if names != ["safetensors"]:  # the others take images as the loader gives them, or with `normalize` pixels in 0…1
        scale, shift = scale_and_shift(data.mean, data.std)
        model = formats.Rescaled(student, 255 * scale, shift).eval() if settings.normalize else student
        program, given = formats.capture(model, run.image_shape), "pixels" if settings.normalize else "images"
        if "torch" in names:
            torch.export.save(program, buffer := io.BytesIO())
            write_whole(folder / FILES["torch"], buffer.getvalue())
        if {"onnx", "onnx_int8"} & {*names}:
            content = formats.onnx_bytes(program, given, about["output"]["values"])
            if "onnx" in names:
                write_whole(folder / FILES["onnx"], content)
            if "onnx_int8" in names:
                calibration = _sample(data.train, settings.calibration, data, settings.normalize)[1].split(CHUNK)
                small = formats.int8_bytes(content, calibration, settings.int8_exclude)
                write_whole(folder / FILES["onnx_int8"], small)
    write_whole(folder / MODEL, json.dumps(about, indent=1).encode())
    report = _measure(folder, student, run, data, settings)
    write_whole(folder / MODEL, json.dumps(about | {"measured": report}, indent=1).encode())
    card = model_card(run, report, data, settings.licence)
    write_whole(folder / CARD, card.encode())
    console = Console()
    console.print(Markdown(card[card.index("## Files and cost") :].partition("\n- ")[0]))  # without the SHA-256
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
    return report


def _measure(
    folder: Path, student: nn.Module, run: FinishedRun, data: Dataset, settings: ExportConfig
) -> dict[str, Any]:
    """Load every file again, compare it with the student in memory on test images, and time them and the teacher."""
    images, given, labels = _sample(data.test, settings.images, data, settings.normalize)
    expected, classifies = _outputs(student, images), not run.settings.model.get("features_only")
    node, teacher = run.settings.teacher.model, None
    if node is not None:  # with fresh weights, to count and to time
        teacher = build.network("teacher.model", build.without_weights(node), 0).eval()
    loaded = {name: formats.load(folder, name) for name in FILES if (folder / FILES[name]).is_file()}
    files: dict[str, dict[str, Any]] = {}
    for name, forward in loaded.items():
        found, path = _outputs(forward, images if name == "safetensors" else given), folder / FILES[name]
        difference = (found - expected).abs().max().item()
        if difference > TOLERANCE * max(1.0, expected.abs().max().item()) and name != "onnx_int8":
            raise ValueError(f"{path} disagrees with the network in memory by up to {difference:.3g}; do not use it")
        about = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        files[name] = about | {"max_difference": difference}
        if classifies:
            files[name] |= {"same_class": _share(found, expected.argmax(1)), "top1": _share(found, labels)}
    layers = [name for name, m in student.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    timed: dict[str, Forward] = {} if teacher is None else {"teacher": teacher.to(settings.device)}
    timed["student"] = student.to(settings.device)
    if settings.device == "cpu":  # where the files run
        timed |= {name: forward for name, forward in loaded.items() if name != "safetensors"}
    examples = {size: torch.randn(size, *run.image_shape, device=settings.device) for size in BATCHES}
    top1 = {"top1": _share(expected, labels)} if classifies else {}
    return {
        "images": len(labels),
        "normalize": settings.normalize,
        "calibration": min(settings.calibration, len(data.train)) if "onnx_int8" in files else None,
        "int8_exclude": settings.int8_exclude,
        "ends": layers[:1] + layers[-1:],
        "files": files,
        "student": cost(student, run.image_shape) | top1,
        "test": run.test,
        "teacher": None if teacher is None else cost(teacher, run.image_shape),
        "latency": {str(size): _latencies(timed, example, settings.repeats) for size, example in examples.items()},
        **provenance(torch.device(settings.device), 1),
    }


def _sample(split: Split, most: int, data: Dataset, pixels: bool) -> tuple[Tensor, Tensor, Tensor]:
    """At most `most` images without augmentation, evenly spaced: normalised, as `pixels` in 0…1 or the same again, and labels."""
    indices = torch.linspace(0, len(split) - 1, min(most, len(split))).round().long()
    images = split.render(indices, torch.full_like(indices, split.unaugmented))
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
    return images, images * std + mean if pixels else images, split.labels[indices]


@torch.no_grad()
def _outputs(network: Forward, images: Tensor) -> Tensor:
    return torch.cat([network(batch) for batch in images.split(CHUNK)])


def _share(logits: Tensor, classes: Tensor) -> float:
    return 100 * (logits.argmax(1) == classes).double().mean().item()


@torch.no_grad()
def cost(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Parameters, bytes of parameters and statistics, FLOPs of one image.

    A multiplication and an addition count as two; convolutions and matrix products are counted.
    """
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "flops": counter.get_total_flops(),
    }


@torch.no_grad()
def _latencies(networks: Mapping[str, Forward], images: Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of a call on `images` `[B, C, H, W]`, over `calls`; the networks take turns, so that drift hits all alike."""
    times, start = {name: list[float]() for name in networks}, time.perf_counter()
    for turn in range(repeats + WARM_UP):
        for name, network in networks.items():
            before = time.perf_counter()
            network(images)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            times[name].append(time.perf_counter() - before)
        if turn + 1 >= LEAST + WARM_UP and time.perf_counter() - start > SECONDS:
            break
    measured = {name: taken[WARM_UP:] for name, taken in times.items()}
    return {name: {"milliseconds": 1000 * statistics.median(t), "calls": len(t)} for name, t in measured.items()}


class _Markdown(str):
    """Text of the template's own, not to be escaped."""


def model_card(run: FinishedRun, report: Mapping[str, Any], data: Dataset, licence: str | None) -> str:
    """The card in Markdown, from the template `model_card.md`; names from files are escaped; `licence`: of the weights."""
    from nst.report.text import code, plain  # brings pandas

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, _Markdown) else plain(str(value)),
    )
    environment.filters |= {
        "code": lambda text: _Markdown(code(str(text))),
        "percent": "{:.2f} %".format,
        "grouped": "{:,}".format,
        "arguments": _arguments,
        "component": lambda node: f"{node['_target_'].rpartition('.')[2]} ({_arguments(node)})",
    }
    test, teacher, classes = report["test"], run.summary["teacher"], run.classes(data)
    measured, about, interval = {"student": report["student"], **report["files"]}, measure_of(test), ""
    if about != "loss":
        found = binomtest(round(test[about] * test["images"] / 100), test["images"]).proportion_ci(method="wilson")
        interval = f"{100 * found.low:.1f} and {100 * found.high:.1f} %"
    if teacher:
        top1 = {key: teacher[key] for key in ("top1",) if key in teacher}
        measured = {"teacher": report["teacher"] | top1, **measured}
    return environment.get_template("model_card.md").render(
        run=run,
        report=report,
        data=data,
        licence=licence,
        classes=classes,
        quality=None if about == "top1" else shown_as(about, test[about]),
        worst=worst_classes(test, classes)[:5] if about == "top1" else [],
        preprocessing=_Markdown(preprocessing(run.settings.data)),
        measured=measured,
        calls=min(latency["calls"] for at in report["latency"].values() for latency in at.values()),
        interval=interval,
    )


def _arguments(node: Mapping[str, Any]) -> str:
    """Arguments as text; empty ones (null, an empty list) are omitted."""

    def text(value: Any) -> str:
        if isinstance(value, list):
            return "; ".join(text(v) for v in value)
        return " / ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    shown = {key: v for key, v in node.items() if key not in ("weight", "_target_") and v is not None and v != []}
    return ", ".join(f"{key} = {text(v)}" for key, v in shown.items())
