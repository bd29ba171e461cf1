"""Text from files in Markdown, escaped."""

import re
from collections.abc import Sequence
from html import escape


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is: on one line, with every character of their syntax neutralised."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", escape(" ".join(text.split()), quote=False))


def code(text: str) -> str:
    """A code span that its text cannot end; pipes are neutralised, for tables."""
    text = " ".join(text.split()).replace("|", r"\|")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"


def markdown_row(texts: Sequence[str]) -> str:
    """One line of a GitHub table."""
    return "| " + " | ".join(texts) + " |"
