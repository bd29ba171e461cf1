"""Which implementation NST computes in, what its targets hold, and which arguments and inputs it refuses."""

import pytest
import torch

from nst.losses import NST


@pytest.mark.parametrize(
    ("student", "teacher", "implementation"),
    [
        ((336, 8, 8), (256, 8, 8), "gram"),
        ((64, 8, 8), (64, 8, 8), "gram"),
        ((1024, 7, 7), (2048, 7, 7), "gram"),
        ((16, 32, 32), (16, 32, 32), "pairs"),
        ((16, 16, 16), (64, 16, 16), "pairs"),
    ],
)
def test_the_cheaper_form_is_chosen_by_shape(student, teacher, implementation):
    assert NST().spec(student, teacher).implementation == implementation
    assert NST("linear").spec(student, teacher).implementation == "mean"
    assert NST("gaussian").spec(student, teacher).implementation == "stream"
    assert NST(implementation="stream").spec(student, teacher).implementation == "stream"


def test_the_gram_summary_is_its_upper_triangle():
    assert NST().spec((336, 8, 8), (256, 8, 8)).target == {"gram": (2080,)}
    assert NST("linear").spec((336, 8, 8), (256, 8, 8)).target == {"mean": (64,)}
    assert NST("gaussian").spec((336, 8, 8), (256, 8, 8)).target == {"stream": (256, 64)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "cubic"}, "linear, polynomial or gaussian"),
        ({"degree": 0}, "at least 1"),
        ({"degree": 1.5}, "whole number"),
        ({"degree": True}, "^degree is"),
        ({"c": float("nan")}, "^c is"),
        ({"c": float("inf")}, "^c is"),
        ({"kernel": "gaussian", "sigma2": float("nan")}, "^sigma2 is"),
        ({"kernel": "gaussian", "sigma2": float("inf")}, "^sigma2 is"),
        ({"kernel": "gaussian", "sigma2": 0.0}, "sigma2 is 0.0.*more than 0"),
        ({"kernel": "gaussian", "sigma2": "median"}, "pairs, joint"),
        ({"kernel": "linear", "implementation": "gram"}, "mean, stream"),
    ],
)
def test_arguments_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        NST(**options)


def test_the_form_travels_with_the_target():
    x, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 5, 3, 3)
    expected = NST()(x, NST().target(teacher))
    for implementation in ("gram", "pairs", "stream"):
        target = NST(implementation=implementation).target(teacher, (4, 3, 3))
        assert [*target] == [implementation]
        for reader in (NST(), NST(implementation="stream"), NST(implementation="gram")):
            torch.testing.assert_close(reader(x, target), expected)


def test_inputs_that_do_not_fit():
    loss, x = NST(), torch.randn(2, 4, 6, 6)
    target = loss.target(x)
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        loss(x.flatten(2), target)
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        loss.target(x[0])
    with pytest.raises(ValueError, match="batch is 1"):
        loss(x[:1], target)
    with pytest.raises(ValueError, match="student_shape"):
        loss(torch.randn(2, 4, 3, 3), target)
    with pytest.raises(ValueError, match="from its own target"):
        loss(x, {"logits": torch.randn(2, 10)})
    with pytest.raises(TypeError, match=r"loss\.target\(teacher\)"):
        loss(x, x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"'mean'.*'stream'"):
        NST("gaussian")(x, NST("linear").target(x))
    with pytest.raises(ValueError, match="aspect ratio"):
        NST(convention="crd").target(x, (4, 3, 2))
    with pytest.raises(ValueError, match="at least 1"):
        loss.spec((4, 0, 3), (4, 3, 3))
    with pytest.raises(ValueError, match="floating"):
        loss.target(x.long())
