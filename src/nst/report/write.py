"""A table's result on disk and on the terminal."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nst.files import write_whole
from nst.report.page import page
from nst.report.text import WORDS, as_csv, as_markdown, cells, columns, label, notes, settings_text, teacher_text, title

Record = dict[str, Any]


def write_result(result: Record, folder: Path, outputs: Path) -> None:
    """Write `table.json`, `table.csv`, `table.md` and `page.html`; the same runs give the same bytes."""
    write_whole(folder / "table.json", (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(folder / "table.csv", as_csv(result).encode())
    write_whole(folder / "table.md", as_markdown(result).encode())
    write_whole(folder / "page.html", page(result, folder, outputs).encode())


def print_result(result: Record) -> None:
    """The tables, for the terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)
    for group in result["groups"]:
        grid, shown = Table(title=Text(f"{title(result)}\n{group['title']}")), columns(group)
        for name in shown:
            grid.add_column(name, justify="left" if name in WORDS else "right")
        for row in group["rows"]:
            grid.add_row(*(Text(cells(row).get(name, "–")) for name in shown))
        if group["teacher"]:
            grid.caption = Text(teacher_text(group["teacher"]))
        console.print(grid)
        if settings_text(group):
            console.print(Text(f"settings: {settings_text(group)}"))
    if label(result):
        console.print(Text(label(result), style="bold"))
    for note in notes(result):
        console.print(Text(note, style="dim"))
