"""Every Python block in README.md and docs/*.md is executed; the blocks of a page share their names, in order."""

from pathlib import Path

import pytest
import torch
from blocks import PAGES, Block, blocks

import nst

NEEDS_EXPORT = ("export.md",)  # read an exported student from the working folder: see tests/export/test_page.py
SHRUNKEN = {'"trainer.epochs=2"': '"trainer.epochs=1", "data.limit=40", "teacher.min_accuracy=0"'}
GIVEN = {  # what a page takes as given
    "losses.md": """
import torch
from nst.losses import NST
loss, student_shape = NST(), (4, 5, 5)
student_feature, teacher_feature = torch.randn(2, 4, 5, 5), torch.randn(2, 6, 5, 5)
""",
}
PYTHON = [page for page in PAGES if page.name not in NEEDS_EXPORT and blocks(page, "python")]


def execute(block: Block, names: dict[str, object]) -> None:
    """Run a block; an error names its page and line."""
    text = block.text
    for found, replacement in SHRUNKEN.items():
        text = text.replace(found, replacement)
    exec(compile("\n" * (block.line - 1) + text, block.page, "exec"), names)


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_snippets(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    exec(GIVEN.get(page.name, ""), names)
    monkeypatch.syspath_prepend(tmp_path)
    for block in blocks(page, "python"):
        if block.file is not None:  # which later blocks import
            (tmp_path / block.file).write_text(block.text)
        execute(block, names)


def test_every_public_name_is_on_the_page() -> None:
    page = next(page for page in PAGES if page.name == "library.md").read_text()
    missing = [name for name in nst.__all__ if f"`{name}`" not in page]
    assert not missing
