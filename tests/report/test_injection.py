"""Strings of every file that a page reads stay text: in HTML, in Markdown, in a model card."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.report.written import write_evidence, write_table

from nst.report.markdown import code, plain
from nst.report.table import read_table
from nst.report.write import write_result

PAYLOAD = """</style></script><script>alert(1)</script><img src=x onerror="alert(2)">"' onload='alert(3)' a=`{{ 7*7 }}{% x %}&lt;|"""
AS_THEY_ARE = ("kind", "folder")  # choose what is read: a line of another kind is left out; for folders see below


class Structure(HTMLParser):
    """The tags of a page with their attributes' names, and what a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.values: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.values.append(data)


def structure(text: str) -> Structure:
    """A parsed page."""
    parser = Structure()
    parser.feed(text)
    parser.close()
    return parser


def injected(node: Any, add: Callable[[str], str]) -> Any:
    """Every string in nested data with `add`; so are the keys of what has no fixed ones."""
    if isinstance(node, dict):
        free = ("versions", "hardware")
        return {
            key: {add(k): injected(v, add) for k, v in value.items()}
            if key in free
            else value
            if key in AS_THEY_ARE
            else injected(value, add)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [injected(value, add) for value in node]
    return add(node) if isinstance(node, str) else node


def written(tmp_path: Path, addition: str, names: bool) -> tuple[str, str]:
    """The page and the Markdown of a table with an addition to every string of its files, to the names of loss terms too.

    Args:
        names: also to the names of groups and rows, which are parts of file names: as far as they may hold it.
    """
    folder = write_table(tmp_path)
    write_evidence(folder)
    parts = {"small", *(row["name"] for row in json.loads((folder / "plan.json").read_text())["groups"][0]["rows"])}

    def add(old: str) -> str:
        if old in parts:
            return old + addition.replace("/", "") if names else old
        return old + addition

    for file in tmp_path.rglob("*.json"):
        content = injected(json.loads(file.read_text()), add)
        if "loss" in content:
            content["loss"] = {name if name == "ce" else name + addition: v for name, v in content["loss"].items()}
        file.write_text(json.dumps(content))
    for file in tmp_path.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()[:-1]]
        file.write_text("".join(json.dumps(injected(line, add)) + "\n" for line in lines))
    write_result(read_table(folder, tmp_path), folder, tmp_path)
    return (folder / "page.html").read_text(), (folder / "table.md").read_text()


@pytest.mark.parametrize("names", [False, True])
def test_no_string_becomes_markup(tmp_path: Path, names: bool):
    page, markdown = written(tmp_path / "injected", PAYLOAD, names)
    harmless, _ = written(tmp_path / "harmless", " nst", names)
    found, expected = structure(page), structure(harmless)
    assert found.tags == expected.tags
    assert ("img" in {tag[0] for tag in found.tags}) is not names  # the evidence of groups by those names is not there
    assert all(tag[0] not in ("script", "iframe", "object") for tag in found.tags)
    assert not [name for tag in found.tags for name in tag[1:] if name.startswith("on") or name == "style"]
    shown = "\n".join(found.values)
    for text in ("A test", "a paper", "big → small", "KD", "test", "error", "abc", "cpu", "torch", "big"):
        assert text + PAYLOAD in shown, text
    assert json.dumps("digits" + PAYLOAD) in shown  # the configuration, as it lies in the run's folder
    check_markdown(markdown)


def check_markdown(text: str) -> None:
    """No tag outside of code spans, no cell that a name opened, every table row as wide as its header."""
    outside = re.sub(r"(?<!\\)(`+) ?.*?(?<!`)\1(?!`)", "", text)
    assert not re.search(r"<\s*[a-z/!]", outside, re.I)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_names_are_no_paths(tmp_path: Path):
    folder = write_table(tmp_path)
    plan = json.loads((folder / "plan.json").read_text())
    for name in ("../../secret", PAYLOAD, "", ".."):
        plan["groups"][0]["name"] = name
        (folder / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(ValueError, match="cannot be part of a file's name"):
            read_table(folder, tmp_path)


def test_markdown_is_neutralised():
    assert plain("a|b <b>\n[x](javascript:1) `c` *d* \\") == (
        r"a\|b &lt;b&gt; \[x\](javascript:1) \`c\` \*d\* " + "\\\\"
    )
    assert code("a`b") == "`` a`b ``"
    assert code("x | y") == r"`x \| y`"
