"""The model card: what a user of the exported student needs to know, filled from the run."""

import math
from typing import Any

from nst.data.dataset import Dataset
from nst.export.finished import FinishedRun
from nst.export.table import cost_rows, counts, footnote

LICENCE = (
    "Not stated. The terms of the training data and of the teacher's weights may bind the student too: "
    "check both before you pass it on."
)


def model_card(run: FinishedRun, report: dict[str, Any], data: Dataset, licence: str | None) -> str:
    """The card in Markdown. `licence`: of the weights, None where nobody said."""
    name = run.settings.model["name"]
    teacher = run.summary["teacher"]
    origin = f"distilled from {teacher['name']}" if teacher else "trained without a teacher"
    sections = {
        "How to load": _loading(run, report),
        "Data": _data(run, data),
        "Method": _method(run),
        "Accuracy": _accuracy(run),
        "Files and cost": _files(run, report),
        "Limits": _limits(run, data),
        "Licence": licence or LICENCE,
        "Made with": _provenance(run, report),
    }
    text = f"# {name} on {data.name}\n\nAn image classifier of {data.num_classes} classes, {origin}.\n"
    return text + "".join(f"\n## {title}\n\n{body}\n" for title, body in sections.items())


def _loading(run: FinishedRun, report: dict[str, Any]) -> str:
    shape = ", ".join(str(n) for n in run.image_shape)
    given = "pixels" if report["normalize"] else "images"
    node, files = run.settings.model, report["files"]
    parts = []
    if "torch" in files:
        parts.append(
            f'```python\nimport torch\nmodel = torch.export.load("student.pt2").module()\nlogits = model({given})\n```'
        )
    if "onnx" in files:
        parts.append(
            '```python\nimport onnxruntime\nsession = onnxruntime.InferenceSession("student.onnx")\n'
            f'logits = session.run(None, {{"{given}": {given}.numpy()}})[0]\n```'
        )
    if "safetensors" in files:
        parts.append(
            f"With the network's own code (`{node['_target_']}`; `model.json` has its arguments):\n\n"
            '```python\nfrom nst.export import load_student\nmodel = load_student(".")\nlogits = model(images)\n```'
        )
    text = f"`images`: float32 `[batch, {shape}]`, normalised by channel as `(pixel / 255 - mean) / std` with "
    text += f"mean {_numbers(run.settings.data['mean'])} and std {_numbers(run.settings.data['std'])}."
    if report["normalize"]:
        text += " `pixels`: the same without the normalisation, values in 0…1."
    return "\n\n".join([*parts, text])


def _numbers(values: list[float]) -> str:
    return f"[{', '.join(f'{v:g}' for v in values)}]"


def _data(run: FinishedRun, data: Dataset) -> str:
    channels, height, width = run.image_shape
    held = f", {len(data.val):,} held out for validation" if data.val is not None else ""
    text = f"{data.name}: {len(data.train):,} training images{held}, {len(data.test):,} test images; "
    text += f"{channels} × {height} × {width}."
    if data.classes is not None:
        text += f"\n\nClasses, in the order of the logits: {', '.join(data.classes)}."
    return text


def _method(run: FinishedRun) -> str:
    lines = ["| term | weight | settings |", "|---|---|---|"]
    for name, node in run.settings.loss.items():
        settings = ", ".join(f"{k} = {_setting(v)}" for k, v in node.items() if k not in ("weight", "_target_"))
        lines.append(f"| {name} (`{node['_target_']}`) | {node['weight']:g} | {settings} |")
    trainer = run.settings.trainer
    lines += [
        "",
        f"{trainer.epochs} epochs, batches of {trainer.batch_size}, {trainer.precision}; {_component(run.settings.optim)}; "
        f"schedule {_component(run.settings.schedule)}. Seed {run.settings.seed}.",
    ]
    teacher = run.summary["teacher"]
    if teacher:
        knowledge = run.settings.knowledge
        source = "run beside it" if knowledge.mode == "live" else f"stored, knowledge.views = {knowledge.views}"
        lines += ["", f"Teacher: {teacher['name']} ({source}), weights with SHA-256 `{teacher['sha256']}`."]
    return "\n".join(lines)


def _component(node: dict[str, Any]) -> str:
    """A node as its class's name and its settings: "SGD (lr = 0.1, momentum = 0.9)"."""
    settings = ", ".join(f"{key} = {_setting(value)}" for key, value in node.items() if key != "_target_")
    return f"{node['_target_'].rpartition('.')[2]} ({settings})"


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(_setting(v) for v in value)
    if isinstance(value, dict):
        return " / ".join(f"{k} {v}" for k, v in value.items())
    return str(value)


def _accuracy(run: FinishedRun) -> str:
    test, teacher = run.summary["test"], run.summary["teacher"]
    lines = ["| network | top-1 | top-5 | cross-entropy | images |", "|---|---|---|---|---|"]
    rows = [("student, last epoch", test, "test")]
    if teacher:
        rows.append(("teacher", teacher, teacher["evaluated_on"]))
    for who, found, split in rows:
        values = f"{found['top1']:.2f} % | {found['top5']:.2f} % | {found['loss']:.4f} | {found['images']:,} {split}"
        lines.append(f"| {who} | {values} |")
    return "\n".join(lines)


def _files(run: FinishedRun, report: dict[str, Any]) -> str:
    header, *rows = cost_rows(run, report)
    table = [header, ["---"] * len(header), *rows]
    lines = [f"| {' | '.join(row)} |" for row in table]
    lines += ["", "Each file was loaded again and compared with the network in memory on the same test images; the "]
    lines[-1] += f"difference is the largest of any logit. {footnote(run, report)}"
    lines += ["", *(f"- {who}: {counts(report, who)}" for who in ("teacher", "student") if report[who])]
    lines += ["", "A multiplication and an addition are two FLOP; convolutions and matrix products are counted.", ""]
    return "\n".join([*lines, *(f"- `{f['file']}`: SHA-256 `{f['sha256']}`" for f in report["files"].values())])


def wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share `p` seen in `n` cases; it holds for shares of 0 and 1, too."""
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max((middle - half) / (1 + z * z / n), 0.0), min((middle + half) / (1 + z * z / n), 1.0)


def _limits(run: FinishedRun, data: Dataset) -> str:
    test, teacher = run.summary["test"], run.summary["teacher"]
    p = test["top1"] / 100
    low, high = wilson(p, test["images"])
    lines = [
        f"- Tested on {data.name} alone. Other cameras, sizes or subjects may give other accuracies, and an image of "
        "none of the classes gets one of them all the same.",
        f"- One run with one seed. From {test['images']:,} test images, the accuracy is known to lie between "
        f"{100 * low:.1f} and {100 * high:.1f} % (95 %); another seed differs besides.",
        "- The logits are not calibrated: a softmax of them is no probability.",
    ]
    if run.summary["evaluated_on"] == "test":
        lines.append(
            "- No validation images were held out, so test accuracy was seen during training. The last epoch is "
            "reported, not the best."
        )
    if teacher and teacher["evaluated_on"] == "test":
        lines.append(f"- Its top-1 is {test['top1'] - teacher['top1']:+.2f} points from the teacher's.")
    return "\n".join(lines)


def _provenance(run: FinishedRun, report: dict[str, Any]) -> str:
    def words(versions: dict[str, str]) -> str:
        return ", ".join(f"{name} {version}" for name, version in versions.items())

    made, hardware = run.summary, run.summary["hardware"]
    return "\n".join(
        [
            f"- trained: commit {made['commit']}, {words(made['versions'])}; {hardware['device']}, "
            f"{hardware['ranks']} process(es), {made['seconds']:,.0f} s",
            f"- exported: commit {report['commit']}, {words(report['versions'])}; {report['hardware']['device']}",
        ]
    )
