"""One self-contained page a table: no network, no script, every figure inside."""

import json
from html import escape
from pathlib import Path
from typing import Any

from nst.report.sections import (
    cost,
    curve_panels,
    mmd_rows,
    neuron_pictures,
    provenance,
    result_rows,
    result_table,
    tsne_panels,
)
from nst.report.style import STYLE
from nst.report.text import label, notes, title

Record = dict[str, Any]


def page(result: Record, folder: Path, outputs: Path) -> str:
    """The whole page as HTML.

    Args:
        result: from `read_table`.
        folder: the table's own; `evidence/` lies there.
        outputs: the folder of all runs, for their curves.
    """
    several = len(result["groups"]) > 1
    body = [f"<h1>{escape(title(result))}</h1>", f'<p class="mute">{escape(about(result))}</p>']
    if label(result):
        body.append(f'<div class="banner" role="note"><strong>{escape(label(result))}</strong></div>')
    if several:
        links = ", ".join(f'<a href="#{g["name"]}">{escape(g["title"])}</a>' for g in result["groups"])
        body.append(f"<p>Groups: {links}.</p>")
    for group in result["groups"]:
        body.append(f'<h2 id="{escape(group["name"])}">{escape(group["title"])}</h2>')
        body += _group(result, group, _evidence(folder, group), folder, outputs)
    body.append("<h2>How to read and how to get this</h2>")
    body.append('<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes(result)) + "</ul>")
    body.append(f"<p>The whole table: <code>{escape(result['command'])}</code></p>")
    body += provenance(result, outputs)
    return _document(title(result), "\n".join(part for part in body if part))


def about(result: Record) -> str:
    """One line: what the figures stand beside."""
    metric = "Top-1 error in percent" if result["metric"] == "error" else "Top-1 accuracy in percent"
    source = result["source"]
    return (
        f"{metric}. Published figures: {source}."
        if source != "nothing published"
        else f"{metric}. No published figures exist."
    )


def _evidence(folder: Path, group: Record) -> Record | None:
    file = folder / "evidence" / f"{group['name']}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _group(result: Record, group: Record, evidence: Record | None, folder: Path, outputs: Path) -> list[str]:
    parts = [headline(group, result["metric"]), result_table(group)]
    parts += result_rows(group, result["metric"])
    parts += curve_panels(group, outputs)
    if evidence is not None:
        parts += mmd_rows(group, evidence)
        parts += neuron_pictures(group, folder)
        parts += tsne_panels(group, evidence)
    parts += cost(group)
    return parts


def headline(group: Record, metric: str) -> str:
    """The result in a sentence or two."""
    rows = [row for row in group["rows"] if row["last"]]
    if not rows:
        return '<p class="lead">No run of this group is finished.</p>'
    best, first = min(rows, key=lambda row: row["rank"]), group["rows"][0]
    text = f"Best mean at the last epoch: {best['label']}, {best['last']['mean']:.2f} % {metric}"
    if best is not first and first["last"]:
        text += f"; {first['label'].lower()} {first['last']['mean']:.2f} %"
        pair = best["paired"]
        if pair and pair["half_width"] is not None:
            sure = "more" if abs(pair["mean"]) > pair["half_width"] else "no more"
            text += f". Over the same {pair['n']} seeds that is {pair['mean']:+.2f} ± {pair['half_width']:.2f} points: {sure} than chance between seeds explains"
    return f'<p class="lead">{escape(text)}.</p>'


def _document(name: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}</title>\n"
        '<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
