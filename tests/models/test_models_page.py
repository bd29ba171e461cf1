"""docs/models.md names every network with its number of parameters."""

import re
from pathlib import Path

import pytest

import nst.models as models

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
ROWS = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ", PAGE.read_text(), flags=re.MULTILINE)


@pytest.mark.usefixtures("meta")
def test_every_network_is_listed_with_its_parameters() -> None:
    configs = {path.stem for path in (PAGE.parents[1] / "configs" / "model").glob("*.yaml")}
    assert {name for name, _ in ROWS} == configs - {"timm", "torchvision"}
    for name, parameters in ROWS:
        assert f"{sum(p.numel() for p in getattr(models, name)().parameters()):,}" == parameters, name
