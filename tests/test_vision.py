"""Beside a torchvision that cannot be imported: what needs it says what to install; the rest runs (tests/cli/test_imports.py)."""

import importlib
import sys

import pytest

from nst import models


def test_what_needs_torchvision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in ("nst.vision", "nst.data.augment"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    message = "cannot be imported beside torch .* together and from one place: pip install --force-reinstall torch torchvision"
    for model in (models.torchvision_model, models.timm_model):
        with pytest.raises(ValueError, match=message):
            model("resnet18", 10)
    with pytest.raises(ValueError, match=message):
        importlib.import_module("nst.data.augment")
