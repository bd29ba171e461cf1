"""What the site of mkdocs.yml needs besides the pages, which are written for GitHub: called by `mkdocs build`."""

import re
from collections.abc import Mapping
from typing import Any

OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\(\.\./([^)\s]*)\)")
INLINE_MATH = re.compile(r"\$`([^`]+)`\$")


def on_page_markdown(markdown: str, *, page: Any, config: Mapping[str, Any], files: Any) -> str:
    """Links to files outside docs/ lead to the repository, if `repo_url` names one; GitHub's inline math becomes TeX's."""
    url = (config["repo_url"] or "").rstrip("/")
    link = rf"[\1]({url}/blob/main/\2)" if url else r"\1"
    return INLINE_MATH.sub(r"$\1$", OUTSIDE.sub(link, markdown))
