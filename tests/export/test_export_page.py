"""The Python blocks of docs/export.md, run where an exported student lies."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nst.export import load_student

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_block(block: str, exported: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, report = exported
    if "onnx" in block and "onnx" not in report["files"]:
        pytest.skip("the extra nst[onnx] is not installed")
    monkeypatch.chdir(folder)
    images = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
    names: dict[str, Any] = {"images": images}
    exec(block, names)
    torch.testing.assert_close(torch.as_tensor(names["logits"]), load_student(folder)(images), rtol=1e-4, atol=1e-4)
