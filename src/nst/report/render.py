"""The package's Jinja templates. HTML escapes whatever it is given; in Markdown the filters `plain` and `code` do."""

import base64
import hashlib
import re
from html import escape

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is: on one line, with every character of their syntax neutralised."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", escape(" ".join(text.split()), quote=False))


def code(text: str) -> str:
    """A code span of Markdown that its text cannot end; pipes are neutralised, for tables."""
    text = " ".join(text.split()).replace("|", r"\|")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"


def number(value: float) -> str:
    """A value of an axis: 50,000."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def environment() -> Environment:
    """The templates of `nst/report/templates`."""
    made = Environment(
        loader=PackageLoader("nst.report"), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"plain": plain, "code": code}
    return made


def html_page(template: str, **content: object) -> str:
    """A page of one file that fetches nothing, with the package's style and a policy that forbids scripts and network access."""
    style = html_style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    own = Markup(style)  # the package's own file
    return environment().get_template(template).render(style=own, policy=policy, **content)


def html_style() -> str:
    """The style of all pages: colours for light and dark, as CSS variables."""
    return environment().get_template("style.css").render()
