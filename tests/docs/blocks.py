"""The fenced blocks of README.md and docs/*.md."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int  # of its first line
    language: str
    text: str
    before: str  # the last line in front of it that holds something

    @property
    def file(self) -> str | None:
        """The file it is the content of: the line before ends in its name, "`mynet.py`"."""
        found = re.search(r"`([\w/]+\.(?:py|yaml))`:?$", self.before)
        return found[1] if found else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in these languages."""
    found, start, language, lines, before = [], 0, "", list[str](), ""
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if start and line.strip() == "```":
            if language in languages:
                found.append(Block(page.name, start, language, "\n".join(lines) + "\n", before))
            start = 0
        elif start:
            lines.append(line)
        elif line.startswith("```"):
            start, language, lines = number + 1, line.removeprefix("```").strip(), []
        elif line.strip():
            before = line.strip()
    return found


@dataclass(frozen=True)
class Command:
    """One command of a bash block."""

    page: str
    line: int
    words: tuple[str, ...]  # without assignments to the environment

    @property
    def text(self) -> str:
        """The command as one line."""
        return " ".join(self.words)

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.text[:60]}"


def indented(page: Path) -> Iterator[Block]:
    """Commands in indented blocks, a line each."""
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if re.match(r"    nst ", line):
            yield Block(page.name, number, "bash", line + "\n", "")


def commands() -> Iterator[Command]:
    """All commands of all pages: comments dropped, continued lines joined, `a && b` split."""
    for page in PAGES:
        for block in [*blocks(page, "bash"), *indented(page)]:
            lines = block.text.replace("\\\n", " ").splitlines()
            for offset, line in enumerate(lines):
                words = shlex.split(line, comments=True)
                while words:
                    end = words.index("&&") if "&&" in words else len(words)
                    part, words = words[:end], words[end + 1 :]
                    while part and re.fullmatch(r"[A-Z_]+=.*", part[0]):
                        part = part[1:]
                    if part:
                        yield Command(block.page, block.line + offset, tuple(part))
