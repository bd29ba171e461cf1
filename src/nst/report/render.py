"""The package's Jinja templates. HTML escapes whatever it is given; in Markdown the filters `plain` and `code` do."""

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from nst.report.markdown import code, plain


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
    return (
        environment().get_template(template).render(style=Markup(style), policy=policy, **content)
    )  # the package's own file


def html_style() -> str:
    """The style of all pages: colours for light and dark, as CSS variables."""
    return environment().get_template("style.css").render()
