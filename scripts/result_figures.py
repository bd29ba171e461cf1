"""The figures of docs/measured.md, drawn from results/: a file a question, in docs/images/."""

import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from nst.report import figures
from nst.report.text import rendered
from nst.tables.statistics import gains, sample
from results import BASELINE, ROOT, by_images, by_seed, named, read_lines  # pyright: ignore[reportAttributeAccessIssue]

IMAGES = ROOT / "docs" / "images"
RATES, NORMS = (0.2, 0.4, 0.8), (None, 5, 2, 1)
METHODS = {  # of the comparison of recipes: name → weights that were given
    "baseline": {}, "KD": {"kd": 16}, "FitNet": {"fitnet": 10}, "AT": {"at": 1000}, "NST (poly)": {"nst_poly": 50},
    "KD + AT": {"kd": 16, "at": 1000}, "KD + NST (poly)": {"kd": 16, "nst_poly": 50},
}  # fmt: skip


def drawn() -> Iterator[tuple[Path, str, str]]:
    """Each figure: its file, the digest of what it is drawn from, and its text."""
    for name, source, draw in (
        ("images.svg", "images.jsonl", gain_by_images),
        ("cifar10_5000.svg", "cifar10_5000_clipped.jsonl", methods),
        ("recipe.svg", "recipe.jsonl", recipes),
        ("cosines.svg", "gradients_recipe.json", cosines),
    ):
        file = ROOT / "results" / source
        digest = f"results/{source}, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}"
        yield IMAGES / name, digest, as_file(draw(file), digest)


def as_file(drawing: str, drawn_from: str) -> str:
    """A drawing as an SVG file of its own, with the page's colours; `drawn_from` stands in it as its description."""
    style = rendered("style.css")
    colours = re.findall(r":root \{.*?\}(?: \})?", style, flags=re.S)[0]
    dark = re.findall(r"@media \(prefers-color-scheme: dark\) \{.*?\} \}", style, flags=re.S)[0]
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)[0]
    head, rest = drawing.split(">", 1)
    style = f"<style>{colours}\n{dark}\nsvg {{ font-family: system-ui, sans-serif; }}</style>"
    ground = '<rect width="100%" height="100%" fill="var(--card)"/>'
    size = f' width="{1.6 * float(width):.0f}" height="{1.6 * float(height):.0f}"'
    return f"{head}{size}>\n<desc>{escape(drawn_from)}</desc>\n{style}\n{ground}{rest}\n"


def gain_by_images(file: Path) -> str:
    """When does it help: the gain over the baseline, by number of training images."""
    return figures.gain_lines(gains(by_images(read_lines(file)), lower_is_better=False), "training images")


def methods(file: Path) -> str:
    """With a tenth of the images: each method with its seeds and interval."""
    rows = []
    for name, runs in named(read_lines(file)).groupby("method", sort=False):
        kind = "nst" if any(term.startswith("nst") for term in runs["weights"].iloc[0]) else "other"
        kind = "baseline" if name.startswith(BASELINE) else kind
        rows.append((name, kind, [*by_seed(runs)], sample(by_seed(runs)), None))
    rows.sort(key=lambda row: -row[3].mean if row[3] else 0.0)
    return figures.points(rows, "test accuracy in percent by method")


def recipes(file: Path) -> str:
    """Which recipe: held-out accuracy of seed 0 at each learning rate and norm of clipping."""
    found, places = {}, [(norm, rate) for norm in NORMS for rate in RATES]
    for _, run in read_lines(file).iterrows():
        own = run["settings"].get("trainer.clip_grad_norm"), run["settings"]["optim.lr"]
        if run["seed"] == 0:
            found.setdefault((frozenset(run["weights"].items()), *own), [*run["curve"].values()][-1])
    values = [[found.get((frozenset(weights.items()), *place)) for place in places] for weights in METHODS.values()]
    columns = [f"{'no clip' if norm is None else f'norm {norm}'}\n{rate:g}" for norm, rate in places]
    about = "held-out accuracy in percent by norm of clipping and learning rate"
    return figures.matrix(values, [*METHODS], columns, about)


def cosines(file: Path) -> str:
    """Is NST another thing: cosines between the gradients of the terms before training, mean of the seeds."""
    measured = [run["measured"]["before training"] for run in json.loads(file.read_text())]
    runs = [{term["term"]: term["cosines"] for term in terms} for terms in measured]
    names = {"ce": "cross-entropy", "kd": "KD", "at": "AT", "fitnet": "FitNet", "nst_poly": "NST (poly)"}
    values = [[sum(run[one][other] for run in runs) / len(runs) for other in names] for one in names]
    shown = [*names.values()]
    return figures.matrix(values, shown, shown, "cosines between gradients", "{:+.2f}", extent=(0, 1))
