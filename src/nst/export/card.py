"""The model card of an exported student, filled from the run."""

import json
import math
from collections.abc import Mapping
from shlex import quote
from typing import Any

from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.export.finished import FinishedRun
from nst.export.preprocess import preprocessing
from nst.export.table import cost_rows, counts, footnote
from nst.export.trust import foreign_targets
from nst.report.markdown import code, markdown_row, plain

LICENCE = (
    "Not stated. The terms of the training data and of the teacher's weights may bind the student too: "
    "check both before you pass it on."
)

_AUGMENTS = {"trivial": "TrivialAugmentWide", "rand": "RandAugment (two operations, magnitude 9)"}


def model_card(run: FinishedRun, report: dict[str, Any], data: Dataset, licence: str | None) -> str:
    """The card in Markdown; names from files are escaped. `licence`: of the weights, None if not stated."""
    name, source = plain(run.settings.model["name"]), plain(data.name)
    teacher = run.summary["teacher"]
    origin = f"distilled from {plain(teacher['name'])}" if teacher else "trained without a teacher"
    sections = {
        "How to load": _loading(run, report),
        "Data": _data(run, data),
        "Method": _method(run),
        "Accuracy": _accuracy(run),
        "Files and cost": _files(run, report),
        "Limits": _limits(run, report, data),
        "Licence": plain(licence) if licence else LICENCE,
        "Made with": _provenance(run, report),
    }
    text = f"# {name} on {source}\n\nAn image classifier of {data.num_classes} classes, {origin}.\n"
    return text + "".join(f"\n## {title}\n\n{body}\n" for title, body in sections.items())


def _loading(run: FinishedRun, report: dict[str, Any]) -> str:
    shape = ", ".join(str(n) for n in run.image_shape)
    inputs = "pixels" if report["normalize"] else "images"
    node, files = run.settings.model, report["files"]
    parts = []
    if "torch" in files:
        parts.append(
            f'```python\nimport torch\nmodel = torch.export.load("student.pt2").module()\nlogits = model({inputs})\n```'
        )
    if "onnx" in files:
        parts.append(
            '```python\nimport onnxruntime\nsession = onnxruntime.InferenceSession("student.onnx")\n'
            f'logits = session.run(None, {{"{inputs}": {inputs}.numpy()}})[0]\n```'
        )
    foreign = list(dict.fromkeys(foreign_targets({"model": node}).values()))
    if "safetensors" in files:
        arguments = f'".", allow={json.dumps(foreign)}' if foreign else '"."'
        modules = dict.fromkeys(code(target.partition(".")[0]) for target in foreign)
        where = f", where {' and '.join(modules)} can be imported" if foreign else ""
        parts.append(
            f"With the network's own code ({code(node['_target_'])}; `model.json` has its arguments){where}:\n\n"
            f"```python\nfrom nst.export import load_student\nmodel = load_student({arguments})\nlogits = model(images)\n```"
        )
    text = f"`images`: float32 `[batch, {shape}]`, prepared as in the evaluation: {preprocessing(run.settings.data)}."
    if report["normalize"]:
        text += " `pixels`: the same without mean and std, values in 0…1."
    if "safetensors" in files:
        names = ",".join(foreign)
        allow = f" {quote(f'allow=[{names}]')}" if foreign else ""
        text += f" {code(f'nst predict model=. images=FOLDER{allow}')} does all of it."
    return "\n\n".join([*parts, text])


def _data(run: FinishedRun, data: Dataset) -> str:
    channels, height, width = run.image_shape
    validation = f", {len(data.val):,} held out for validation" if data.val is not None else ""
    text = f"{plain(data.name)}: {len(data.train):,} training images{validation}, {len(data.test):,} test images; "
    text += f"{channels} × {height} × {width}."
    if classes := run.classes(data):
        text += f"\n\nClasses, in the order of the logits: {', '.join(plain(name) for name in classes)}."
    return text


def _method(run: FinishedRun) -> str:
    lines = ["| term | weight | settings |", "|---|---|---|"]
    for name, node in run.settings.loss.items():
        settings = _settings({k: v for k, v in node.items() if k not in ("weight", "_target_")})
        lines.append(
            markdown_row([f"{plain(name)} ({code(node['_target_'])})", f"{node['weight']:g}", plain(settings)])
        )
    optim, trainer = run.settings.optim, run.settings.trainer
    lines += [
        "",
        f"{trainer.epochs} epochs, batches of {trainer.batch_size}, {trainer.precision}; {_component(optim)}; "
        f"schedule {_component(run.settings.schedule)}. Seed {run.settings.seed}.",
    ]
    if recipe := _recipe(run.settings):
        lines += ["", f"Training also used {'; '.join(recipe)}."]
    teacher = run.summary["teacher"]
    if teacher:
        cache = run.settings.cache
        source = "run with the student" if cache.views == 0 else f"cached, cache.views = {cache.views}"
        if run.settings.teacher.precision != "fp32":
            source += f", in {plain(run.settings.teacher.precision)}"
        lines += ["", f"Teacher: {plain(teacher['name'])} ({source}), weights with SHA-256 {code(teacher['sha256'])}."]
    return "\n".join(lines)


def _recipe(settings: RunConfig) -> list[str]:
    """Techniques of the training that are off by default."""
    trainer, augment, erase = settings.trainer, settings.data.get("augment"), settings.data.get("erase")
    smoothing = {str(node["label_smoothing"]) for node in settings.loss.values() if node.get("label_smoothing")}
    texts = [f"mixup (α = {trainer.mixup:g})"] if trainer.mixup else []
    texts += [f"cutmix (α = {trainer.cutmix:g})"] if trainer.cutmix else []
    texts += [f"label smoothing {plain(value)}" for value in sorted(smoothing)]
    texts += [plain(_AUGMENTS.get(str(augment), str(augment)))] if augment else []
    texts += [f"random erasing (probability {plain(str(erase))})"] if erase else []
    texts += [f"gradients clipped at norm {trainer.clip_grad_norm:g}"] if trainer.clip_grad_norm is not None else []
    texts += [f"gradients accumulated over {trainer.accumulate} micro-batches"] if trainer.accumulate > 1 else []
    texts += ["batch normalisation over the batches of all ranks"] if trainer.sync_bn else []
    texts += ["a teacher that normalised by each batch's statistics"] if settings.teacher.batch_statistics else []
    if trainer.ema is not None:
        texts.append(
            f"weights averaged over the steps (EMA, decay {trainer.ema:g}): the average was evaluated, and is what the files hold"
        )
    return texts


def _component(node: dict[str, Any]) -> str:
    """An optimizer or a schedule with its arguments."""
    arguments = _settings({k: v for k, v in node.items() if k != "_target_"})
    return plain(f"{node['_target_'].rpartition('.')[2]} ({arguments})")


def _settings(node: Mapping[str, Any]) -> str:
    """Arguments as text; empty ones (null, an empty list) are omitted."""
    return ", ".join(f"{key} = {_setting(value)}" for key, value in node.items() if value is not None and value != [])


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(_setting(v) for v in value)
    if isinstance(value, dict):
        return " / ".join(f"{k} {v}" for k, v in value.items())
    return str(value)


def _accuracy(run: FinishedRun) -> str:
    test, teacher = run.summary["test"], run.summary["teacher"]
    columns = [("top-1", "top1"), ("top-5", "top5")][: 2 if run.settings.data["num_classes"] > 5 else 1]
    lines = [markdown_row(["network", *(name for name, _ in columns), "cross-entropy", "images"])]
    lines.append(markdown_row(["---"] * (3 + len(columns))))
    rows = [("student, last epoch", test, "test")]
    if teacher:
        rows.append(("teacher", teacher, teacher["evaluated_on"]))
    for network, metrics, split in rows:
        rates = [f"{metrics[key]:.2f} %" for _, key in columns]
        lines.append(markdown_row([network, *rates, f"{metrics['loss']:.4f}", f"{metrics['images']:,} {plain(split)}"]))
    return "\n".join(lines)


def _files(run: FinishedRun, report: dict[str, Any]) -> str:
    header, *rows = cost_rows(run, report)
    table = [header, ["---"] * len(header), *rows]
    lines = [markdown_row(row) for row in table]
    lines += ["", "Each file was loaded again and compared with the network in memory on the same test images; the "]
    lines[-1] += f"difference is the largest of any logit. {plain(footnote(run, report))}"
    lines += ["", *(f"- {network}: {counts(report, network)}" for network in ("teacher", "student") if report[network])]
    lines += ["", "A multiplication and an addition are two FLOP; convolutions and matrix products are counted.", ""]
    return "\n".join([*lines, *(f"- {code(f['file'])}: SHA-256 {code(f['sha256'])}" for f in report["files"].values())])


def wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a proportion `p` of `n` cases; it is valid for 0 and 1, too."""
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max((middle - half) / (1 + z * z / n), 0.0), min((middle + half) / (1 + z * z / n), 1.0)


def _limits(run: FinishedRun, report: dict[str, Any], data: Dataset) -> str:
    test, teacher = run.summary["test"], run.summary["teacher"]
    p = test["top1"] / 100
    low, high = wilson(p, test["images"])
    lines = [
        f"- Tested on {plain(data.name)} alone. Other cameras, sizes or subjects may give other accuracies. An image of "
        "another class still gets one of these.",
        f"- One run with one seed. From {test['images']:,} test images, the accuracy is between "
        f"{100 * low:.1f} and {100 * high:.1f} % (95 % interval); another seed adds its own variation.",
        "- The logits are not calibrated: their softmax is not a reliable probability.",
    ]
    if changed := report["changed_sources"]:
        files = ", ".join(code(file) for file in changed)
        lines.append(f"- {files} changed between training and export: the accuracy is of the earlier code.")
    if run.summary["evaluated_on"] == "test":
        lines.append(
            "- No validation images were held out, so test accuracy was observed during training. The last epoch is "
            "reported, not the best."
        )
    if teacher and teacher["evaluated_on"] == "test":
        lines.append(f"- {beside_teacher(test['top1'], teacher['top1'])}")
    return "\n".join(lines)


def beside_teacher(student: float, teacher: float) -> str:
    """The comparison of two accuracies in percent, as text."""
    gap = f"{abs(student - teacher):.2f}"
    how = f"{gap} percentage points {'below' if student < teacher else 'above'}" if gap != "0.00" else "equal to"
    return f"Its top-1 accuracy is {how} the teacher's ({teacher:.2f} %)."


def _provenance(run: FinishedRun, report: dict[str, Any]) -> str:
    def versions_text(versions: dict[str, str]) -> str:
        return ", ".join(plain(f"{name} {version}") for name, version in versions.items())

    made, hardware = run.summary, run.summary["hardware"]
    return "\n".join(
        [
            f"- trained: commit {plain(str(made['commit']))}, {versions_text(made['versions'])}; {plain(hardware['device'])}, "
            f"{hardware['ranks']} process(es), {made['seconds']:,.0f} s",
            f"- exported: commit {plain(str(report['commit']))}, {versions_text(report['versions'])}; "
            f"{plain(report['hardware']['device'])}",
        ]
    )
