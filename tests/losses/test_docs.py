"""The library example of docs/losses.md runs as printed."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "losses.md"


def test_the_example_runs(capsys):
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    example = next(text for text in examples if "import torch" in text)
    exec(compile(example, str(DOCUMENT), "exec"), {})
    assert capsys.readouterr().out.endswith("pairs\n")
