"""The model card shows names from files as text, and how the student was trained."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from nst import build
from nst.export.card import model_card
from nst.export.finished import finished_run

PAYLOAD = "<script>alert(1)</script>|<img src=x onerror=alert(2)>`[x](javascript:3)"


def injected(node: Any) -> Any:
    """Every string in nested data with the payload."""
    if isinstance(node, dict):
        return {key: injected(value) for key, value in node.items()}
    if isinstance(node, list):
        return [injected(value) for value in node]
    return node + PAYLOAD if isinstance(node, str) else node


def test_names_stay_text(exported: tuple[Path, dict[str, Any]], finished: Path) -> None:
    run, report = finished_run(finished), exported[1]
    data = build.dataset(run.settings)
    clean = model_card(run, report, data, "MIT")
    summary = {key: value if key == "evaluated_on" else injected(value) for key, value in run.summary.items()}
    loss = {name + PAYLOAD: injected(node) for name, node in run.settings.loss.items()}
    settings = replace(run.settings, model=injected(run.settings.model), loss=loss)
    data = replace(data, name=data.name + PAYLOAD, classes=tuple(name + PAYLOAD for name in data.classes or ("a", "b")))
    card = model_card(replace(run, summary=summary, settings=settings), injected(report), data, "MIT" + PAYLOAD)
    assert card.count("script") > 10
    outside = re.sub(r"(?<!\\)(?<!`)(`+)(?!`) ?.*?(?<!`)\1(?!`)", "", re.sub(r"```.*?```", "", card, flags=re.S))
    assert not re.search(r"<\s*[a-z/!]", outside, re.I)
    assert "](javascript" not in outside.replace(r"\](javascript", "")

    def widths(text: str) -> list[int]:
        return [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]

    assert widths(card) == widths(clean)


def test_code_that_changed_since_the_training_is_stated(exported: tuple[Path, dict[str, Any]], finished: Path) -> None:
    run, report = finished_run(finished), exported[1]
    data = build.dataset(run.settings)
    assert report["changed_sources"] == []
    assert "earlier code" not in model_card(run, report, data, None)
    card = model_card(run, report | {"changed_sources": ["mynet.py"]}, data, None)
    assert "`mynet.py` changed between training and export: the accuracy is of the earlier code." in card


def test_the_recipe_is_stated(exported: tuple[Path, dict[str, Any]], finished: Path) -> None:
    """Each key of a recipe that is on; none of them where all are off."""
    run, report = finished_run(finished), exported[1]
    data, settings = build.dataset(run.settings), run.settings
    told = {
        "mixup (α = 0.8)",
        "cutmix (α = 1)",
        "label smoothing 0.1",
        "TrivialAugmentWide",
        "random erasing (probability 0.25)",
        "weights averaged over the steps (EMA, decay 0.99)",
        "run with the student, in bf16",
        "gradients clipped at norm 2",
        "gradients accumulated over 4 micro-batches",
        "batch normalisation over the batches of all ranks",
    }
    plain = model_card(run, report, data, None)
    assert not any(text in plain for text in told)
    assert "Training also used" not in plain
    settings = replace(
        settings,
        trainer=replace(
            settings.trainer, mixup=0.8, cutmix=1.0, ema=0.99, clip_grad_norm=2.0, accumulate=4, sync_bn=True
        ),
        loss=settings.loss | {"ce": settings.loss["ce"] | {"label_smoothing": 0.1}},
        data=settings.data | {"augment": "trivial", "erase": 0.25},
        teacher=replace(settings.teacher, precision="bf16"),
    )
    card = model_card(replace(run, settings=settings), report, data, None)
    assert {text for text in told if text in card} == told
    settings = replace(settings, data=settings.data | {"augment": "rand"})
    assert "RandAugment" in model_card(replace(run, settings=settings), report, data, None)
