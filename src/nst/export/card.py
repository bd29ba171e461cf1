"""The model card of an exported student, filled from the run: values here, the text in `model_card.md`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import binomtest

from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.export.finished import FinishedRun
from nst.export.predict import preprocessing
from nst.report.render import code, plain

LOSS = 1.0  # percentage points that a file of 8 bits may lose before the card names what to try
WORST = 5  # classes that the card names

NAMES = {
    "teacher": "teacher (memory)",
    "student": "student (memory)",
    "safetensors": "safetensors + JSON",
    "torch": "torch.export",
    "onnx": "ONNX",
    "onnx_int8": "ONNX, 8 bits",
}
_AUGMENTS = {"trivial": "TrivialAugmentWide", "rand": "RandAugment (two operations, magnitude 9)"}


class _Markdown(str):
    """Text of the template's own, not to be escaped."""


def model_card(run: FinishedRun, report: Mapping[str, Any], data: Dataset, licence: str | None) -> str:
    """The card in Markdown; names from files are escaped. `licence`: of the weights, None if not stated."""
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
        "row": lambda cells: _Markdown("| " + " | ".join(plain(str(cell)) for cell in cells) + " |"),
        "percent": "{:.2f} %".format,
        "grouped": "{:,}".format,
    }
    settings, test, teacher = run.settings, report["test"], run.summary["teacher"]
    columns = [("top-1", "top1"), ("top-5", "top5")][: 2 if data.num_classes > 5 else 1]
    epoch = "last epoch" if run.epoch == "last" else f"best epoch ({run.summary['best']['epoch']})"
    networks = [(f"student, {epoch}", test, "test")]
    networks += [("teacher", teacher, teacher["evaluated_on"])] if teacher else []
    interval = binomtest(round(test["top1"] * test["images"] / 100), test["images"]).proportion_ci(method="wilson")
    return environment.get_template("model_card.md").render(
        run=run,
        report=report,
        settings=settings,
        test=test,
        teacher=teacher,
        data=data,
        licence=licence,
        classes=run.classes(data),
        input="pixels" if report["normalize"] else "images",
        image_shape=", ".join(str(n) for n in run.image_shape),
        preprocessing=_Markdown(preprocessing(settings.data)),
        module=str(settings.model["_target_"]).partition(".")[0],
        terms=[
            (name, node["_target_"], f"{node['weight']:g}", _arguments(node)) for name, node in settings.loss.items()
        ],
        optim=_component(settings.optim),
        schedule=_component(settings.schedule),
        recipe="; ".join(_recipe(settings)),
        columns=[name for name, _ in columns],
        accuracies=[
            [name, *(f"{of[key]:.2f} %" for _, key in columns), f"{of['loss']:.4f}", f"{of['images']:,} {split}"]
            for name, of, split in networks
        ],
        worst=report["classes"][:WORST],
        costs=cost_rows(run, report),
        footnote=footnote(run, report),
        lost=lost_in_8_bits(report),
        interval=f"{100 * interval.low:.1f} and {100 * interval.high:.1f} %",
        beside=beside_teacher(test["top1"], teacher["top1"]) if teacher else "",
    )


def cost_rows(run: FinishedRun, report: Mapping[str, Any]) -> list[list[str]]:
    """Header, then a row a network or file: name, size, accuracy, agreement, latencies."""
    rows = [["", "size", "top-1", "max. diff.", "same class", *(f"batch {b}" for b in report["latency"])]]
    about = {"student": report["student"], **report["files"]}
    if report["teacher"] is not None:
        about = {"teacher": {**report["teacher"], "top1": run.summary["teacher"]["top1"]}, **about}
    for name, measured in about.items():
        size = measured["bytes"]
        text = f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
        agreement = ["", ""]
        if "max_difference" in measured:
            agreement = [f"{measured['max_difference']:.1e}", f"{measured['same_class']:.2f} %"]
        times = [f"{at[name]['milliseconds']:.2f} ms" if name in at else "" for at in report["latency"].values()]
        rows.append([NAMES[name], text, f"{measured['top1']:.2f} %", *agreement, *times])
    return rows


def footnote(run: FinishedRun, report: Mapping[str, Any]) -> list[str]:
    """Parameters and FLOPs of both networks; the images and hardware of the measurements; what 8 bits lose."""
    texts = [
        f"{who}: {report[who]['parameters']:,} parameters, {report[who]['flops'] / 1e6:,.1f} MFLOP an image"
        for who in ("teacher", "student")
        if report[who] is not None
    ]
    hardware, text = report["hardware"], f"Top-1 on {report['images']:,} test images"
    if report["teacher"] is not None:
        teacher = run.summary["teacher"]
        text += f" (teacher: on {teacher['images']:,} {teacher['evaluated_on']} images, when the student was trained)"
    calls = min(latency["calls"] for at in report["latency"].values() for latency in at.values())
    texts.append(
        f"{text}; latency: median of {calls} calls or more, {hardware['device']}, {hardware['threads']} thread(s)."
    )
    lost = lost_in_8_bits(report)
    return [*texts, lost] if lost else texts


def lost_in_8_bits(report: Mapping[str, Any]) -> str:
    """What to try where the file of 8 bits loses more than `LOSS` points; else empty."""
    if (small := report["files"].get("onnx_int8")) is None or (
        lost := report["student"]["top1"] - small["top1"]
    ) <= LOSS:
        return ""
    return (
        f"In 8 bits the student loses {lost:.2f} points. Keep the layers that suffer in 32 bits, often the first convolution and "
        f"the classifier: int8_exclude=[conv1,fc] (the network's own names); or calibrate on more images than {report['calibration']:,}: "
        "calibration=2048."
    )


def beside_teacher(student: float, teacher: float) -> str:
    """The comparison of two accuracies in percent, as text."""
    gap = f"{abs(student - teacher):.2f}"
    how = f"{gap} percentage points {'below' if student < teacher else 'above'}" if gap != "0.00" else "equal to"
    return f"Its top-1 accuracy is {how} the teacher's ({teacher:.2f} %)."


def _recipe(settings: RunConfig) -> list[str]:
    """Techniques of the training that are off by default."""
    trainer, augment, erase = settings.trainer, settings.data.get("augment"), settings.data.get("erase")
    smoothing = {str(node["label_smoothing"]) for node in settings.loss.values() if node.get("label_smoothing")}
    ema = f"weights averaged over the steps (EMA, decay {trainer.ema}): the average was evaluated, and is what the files hold"
    texts = {
        f"mixup (α = {trainer.mixup:g})": trainer.mixup,
        f"cutmix (α = {trainer.cutmix:g})": trainer.cutmix,
        f"label smoothing {', '.join(sorted(smoothing))}": smoothing,
        str(_AUGMENTS.get(str(augment), augment)): augment,
        f"random erasing (probability {erase})": erase,
        f"gradients clipped at norm {trainer.clip_grad_norm}": trainer.clip_grad_norm,
        f"gradients accumulated over {trainer.accumulate} micro-batches": trainer.accumulate > 1,
        "batch normalisation over the batches of all ranks": trainer.sync_bn,
        "a teacher that normalised by each batch's statistics": settings.teacher.batch_statistics,
        ema: trainer.ema,
    }
    return [text for text, on in texts.items() if on]


def _component(node: Mapping[str, Any]) -> str:
    """An optimizer or a schedule with its arguments."""
    return f"{node['_target_'].rpartition('.')[2]} ({_arguments(node)})"


def _arguments(node: Mapping[str, Any]) -> str:
    """Arguments as text; empty ones (null, an empty list) are omitted."""

    def text(value: Any) -> str:
        if isinstance(value, list):
            return "; ".join(text(v) for v in value)
        return " / ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    left = ("weight", "_target_") if "weight" in node else ("_target_",)
    return ", ".join(f"{key} = {text(v)}" for key, v in node.items() if key not in left and v is not None and v != [])
