"""Links lead somewhere; the configuration page is the current one."""

import re
from pathlib import Path

import pytest
from blocks import PAGES
from scripts.configuration import PAGE, reference


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http:", "https:", "#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


def test_configuration_page_is_current() -> None:
    assert PAGE.read_text() == reference(), "run: python scripts/configuration.py"


def test_every_page_is_in_the_index() -> None:
    index = next(page for page in PAGES if page.name == "index.md").read_text()
    missing = [page.name for page in PAGES if page.parent.name == "docs" and f"({page.name})" not in index]
    assert set(missing) <= {"index.md"}, f"docs/index.md does not link to {missing}"
