"""The page of a run's gradients: how long that of each term is, and the cosines between all of them."""

from typing import Any

from markupsafe import Markup

from nst.report.page import environment, policy
from nst.report.sections import Grid

Record = dict[str, Any]

LEVELS = 4  # of colour, for cosines up to ±1


def gradient_page(result: Record) -> str:
    """The whole page as HTML: one file that fetches nothing.

    Args:
        result: run, about (lines of text) and measured: "before training" and so on → a record for each term with term, weight,
            value, relative_norm and cosines by term, as `training.gradients.TermGradient` has them.
    """
    templates = environment()
    style = templates.get_template("style.css").render()
    return templates.get_template("gradients.html").render(
        title=f"Gradients of {result['run']}",
        run=result["run"],
        about=result["about"],
        policy=policy(style),
        style=Markup(style),  # the package's own file
        sections=[
            {"when": when, "norms": norms(terms), "cosines": cosines(terms)}
            for when, terms in result["measured"].items()
        ],
    )


def norms(terms: list[Record]) -> Grid:
    """A row a term: weight, value, the length of its weighted gradient, and its share of the sum of these lengths."""
    total = sum(term["relative_norm"] for term in terms) or 1.0
    rows = [
        [
            term["term"], f"{term['weight']:g}", f"{term['value']:.4g}", f"{term['relative_norm']:.3g}",
            f"{100 * term['relative_norm'] / total:.0f} %",
        ]
        for term in terms
    ]  # fmt: skip
    return Grid(["term", "λ", "value", "λ · |gradient|", "of the sum"], rows)


def cosines(terms: list[Record]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The matrix: for each term its name and (text, colour class) for the cosine to each term."""
    names = [term["term"] for term in terms]
    return [
        (term["term"], [(f"{term['cosines'][name]:+.2f}", colour(term["cosines"][name])) for name in names])
        for term in terms
    ]


def colour(cosine: float) -> str:
    """The class of a cell: none around a right angle, else the sign and how far it is from one."""
    level = round(LEVELS * abs(cosine)) if cosine == cosine else 0
    return f"{'same' if cosine > 0 else 'against'}{min(level, LEVELS)}" if level else ""
