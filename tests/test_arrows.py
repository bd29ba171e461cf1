"""The arrows of the architecture: who may import whom."""

import ast

import pytest
from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "nst"
# part → parts it may not import
FORBIDDEN = {
    "files": "config losses models data layers teacher distiller loop run build storage report tables export cli",
    "losses": "models data layers teacher distiller loop run build storage report tables export cli config",
    "models": "losses data layers teacher distiller loop run build storage report tables export cli",
    "data": "losses models layers teacher distiller loop run build storage report tables export cli config",
    "layers": "losses data teacher distiller loop run build storage report tables export cli config",
    "distiller": "data teacher loop run build storage report tables export cli config",
    "teacher": "loop run report tables export cli",  # prepare.py sees the configuration, as run.py does
    "optim": "models losses data teacher loop run build storage report tables export cli",
    "loop": "models losses run build report tables export cli",
    "storage": "run build report tables export cli",
    "report": "data distiller loop run export cli",
    "build": "run report tables export cli",
    "tables": "export",
    "export": "tables",
}


def imports(part: str) -> set[str]:
    """The parts of nst that the files of a part import."""
    files = (PACKAGE / part).rglob("*.py") if (PACKAGE / part).is_dir() else [PACKAGE / f"{part}.py"]
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {m.split(".")[1] for m in modules if m.startswith("nst.")}
    return found


@pytest.mark.parametrize("part", FORBIDDEN)
def test_arrows_point_downwards(part: str) -> None:
    assert not imports(part) & set(FORBIDDEN[part].split())
