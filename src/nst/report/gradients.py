"""The page of a run's gradients: how long that of each term is, and the cosines between all of them."""

from typing import Any

from markupsafe import Markup

from nst.report.figures import matrix
from nst.report.render import html_page

Record = dict[str, Any]


def gradient_page(result: Record) -> str:
    """The whole page as HTML: one file that fetches nothing.

    Args:
        result: run, about (lines of text) and measured: "before training" and so on → a record for each term with term, weight,
            value, relative_norm and cosines by term, as `TermGradient` has them.
    """
    sections = [
        {"when": when, "norms": norms(terms), "cosines": _drawing(terms)} for when, terms in result["measured"].items()
    ]
    return html_page("gradients.html", title=f"Gradients of {result['run']}", **result | {"sections": sections})


def norms(terms: list[Record]) -> list[list[str]]:
    """Header, and a row a term: weight, value, the length of its weighted gradient, and its share of the sum of these lengths."""
    total = sum(term["relative_norm"] for term in terms) or 1.0
    rows = [
        [
            term["term"], f"{term['weight']:g}", f"{term['value']:.4g}", f"{term['relative_norm']:.3g}",
            f"{100 * term['relative_norm'] / total:.0f} %",
        ]
        for term in terms
    ]  # fmt: skip
    return [["term", "λ", "value", "λ · |gradient|", "of the sum"], *rows]


def cosines(terms: list[Record]) -> list[list[float]]:
    """The matrix: a row a term, its cosine to each term."""
    return [[term["cosines"][other["term"]] for other in terms] for term in terms]


def _drawing(terms: list[Record]) -> Markup:
    names = [term["term"] for term in terms]
    return Markup(matrix(cosines(terms), names, names, "cosines between the gradients", form="{:+.2f}", signed=True))
