"""Every test that docs/faults.md names is there, and every test here is named."""

import re

from tests.faults.conftest import ROOT


def test_the_table_names_the_tests() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", (ROOT / "docs/faults.md").read_text()))
    there = {
        (file.name, name)
        for file in (ROOT / "tests/faults").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    for file, name in named - there:
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
    assert there - named == {("test_guarantees.py", "test_the_table_names_the_tests")}
