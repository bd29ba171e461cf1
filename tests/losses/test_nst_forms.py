"""Which form NST computes in, what its summaries hold, and which arguments and inputs it refuses."""

import pytest
import torch
from tests.losses.test_nst import EVERY, name

from nst.losses import NST


@pytest.mark.parametrize("options", EVERY, ids=name)
def test_plan_matches_what_happens(options):
    loss = NST(**options)
    for c_s, c_t, size in ((3, 5, 4), (24, 20, 3), (1, 1, 1)):
        plan = loss.plan((c_s, size, size), (c_t, size, size))
        summary = loss.summarize(torch.randn(2, c_t, size, size), (c_s, size, size))
        assert {key: tuple(value.shape[1:]) for key, value in summary.items()} == plan.summary
        assert plan.workspace > 0


@pytest.mark.parametrize(
    ("student", "teacher", "form"),
    [
        ((336, 8, 8), (256, 8, 8), "gram"),
        ((64, 8, 8), (64, 8, 8), "gram"),
        ((1024, 7, 7), (2048, 7, 7), "gram"),
        ((16, 32, 32), (16, 32, 32), "pairs"),
        ((16, 16, 16), (64, 16, 16), "pairs"),
    ],
)
def test_the_cheaper_form_is_chosen_by_shape(student, teacher, form):
    assert NST().plan(student, teacher).form == form
    assert NST("linear").plan(student, teacher).form == "mean"
    assert NST("gaussian").plan(student, teacher).form == "stream"
    assert NST(form="stream").plan(student, teacher).form == "stream"


def test_the_gram_summary_is_its_upper_triangle():
    assert NST().plan((336, 8, 8), (256, 8, 8)).summary == {"gram": (2080,)}
    assert NST("linear").plan((336, 8, 8), (256, 8, 8)).summary == {"mean": (64,)}
    assert NST("gaussian").plan((336, 8, 8), (256, 8, 8)).summary == {"stream": (256, 64)}
    taylor = NST("gaussian", approximate=2).plan((336, 8, 8), (256, 8, 8)).summary
    assert taylor == {"gram": (2080,), "mean": (64,), "counts": (2,)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "cubic"}, "linear, polynomial or gaussian"),
        ({"degree": 0}, "at least 1"),
        ({"degree": 1.5}, "whole number"),
        ({"kernel": "gaussian", "sigma2": 0.0}, "sigma2 is 0.0.*more than 0"),
        ({"kernel": "gaussian", "sigma2": "median"}, "pairs, joint"),
        ({"convention": "code"}, "paper, official, crd"),
        ({"approximate": 2}, "gaussian"),
        ({"kernel": "gaussian", "approximate": 3}, "order 2"),
        ({"kernel": "linear", "form": "gram"}, "mean, stream"),
    ],
)
def test_arguments_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        NST(**options)


@pytest.mark.parametrize("options", EVERY, ids=name)
def test_a_summary_is_named_after_its_form(options):
    loss, x, teacher = NST(**options), torch.randn(2, 4, 3, 3), torch.randn(2, 5, 3, 3)
    summary = loss.summarize(teacher, (4, 3, 3))
    form = loss.plan((4, 3, 3), (5, 3, 3)).form
    assert form in summary
    if form in ("pairs", "stream"):  # as version 0.1 named them
        assert torch.equal(loss(x, {"units": summary[form]}), loss(x, summary))


def test_the_form_travels_with_the_summary():
    x, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 5, 3, 3)
    expected = NST()(x, NST().summarize(teacher))
    for form in ("gram", "pairs", "stream"):
        summary = NST(form=form).summarize(teacher, (4, 3, 3))
        assert [*summary] == [form]
        for reader in (NST(), NST(form="stream"), NST(form="gram")):
            torch.testing.assert_close(reader(x, summary), expected)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"c": float("nan")}, "c"),
        ({"c": float("inf")}, "c"),
        ({"degree": True}, "degree"),
        ({"kernel": "gaussian", "sigma2": float("nan")}, "sigma2"),
        ({"kernel": "gaussian", "sigma2": float("inf")}, "sigma2"),
        ({"kernel": "gaussian", "sigma2": -1.0}, "sigma2"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(options, argument):
    with pytest.raises(ValueError, match=f"^{argument} is"):
        NST(**options)


def test_inputs_that_do_not_fit():
    loss, x = NST(), torch.randn(2, 4, 6, 6)
    summary = loss.summarize(x)
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        loss(x.flatten(2), summary)
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        loss.summarize(x[0])
    with pytest.raises(ValueError, match="batch is 1"):
        loss(x[:1], summary)
    with pytest.raises(ValueError, match="student_shape"):
        loss(torch.randn(2, 4, 3, 3), summary)
    with pytest.raises(ValueError, match="from its own summarize"):
        loss(x, {"logits": torch.randn(2, 10)})
    with pytest.raises(TypeError, match=r"loss\.summarize\(teacher\)"):
        loss(x, x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"'mean'.*'stream'"):
        NST("gaussian")(x, NST("linear").summarize(x))
    with pytest.raises(ValueError, match="aspect ratio"):
        NST(convention="crd").summarize(x, (4, 3, 2))
    with pytest.raises(ValueError, match="at least 1"):
        loss.plan((4, 0, 3), (4, 3, 3))
    with pytest.raises(ValueError, match="floating"):
        loss.summarize(x.long())
