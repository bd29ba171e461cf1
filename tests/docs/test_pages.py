"""Relative links and anchors resolve; the configuration page is current; every page is in the index."""

import re
from pathlib import Path

import pytest
from blocks import PAGES
from scripts.configuration import PAGE, reference


def anchors(page: Path) -> set[str]:
    """What GitHub names the page's headings."""
    names: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        names.append(f"{name}-{names.count(name)}" if name in names else name)
    return {*names}


def prose(page: Path) -> str:
    """The page without its fenced blocks and code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!\$)`[^`\n]*`(?!\$)", lambda code: code[0] if "](" not in code[0] else "", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    """Files and, in pages, headings; addresses of other sites are not looked up."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}: no such file"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}: no such heading"


def test_configuration_page_is_current() -> None:
    assert PAGE.read_text() == reference(), "run: python scripts/configuration.py"


def test_every_page_is_in_the_index() -> None:
    index = next(page for page in PAGES if page.name == "index.md").read_text()
    missing = [page.name for page in PAGES if page.parent == PAGE.parent and f"({page.name})" not in index]
    assert set(missing) <= {"index.md"}, f"docs/index.md does not link to {missing}"
