"""The arrows of the architecture: who may import whom."""

import ast

import pytest
from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "nst"
# part → parts it may not import
FORBIDDEN = {
    "files": "config losses models data layers teacher distiller training build runs report reproduce export commands",
    "losses": "models data layers teacher distiller training build runs report reproduce export commands config",
    "models": "losses data layers teacher distiller training build runs report reproduce export commands config",
    "data": "losses models layers teacher distiller training build runs report reproduce export commands config",
    "layers": "losses models data teacher distiller training build runs report reproduce export commands config",
    "distiller": "models data teacher training build runs report reproduce export commands",
    "teacher": "models training build runs report reproduce export commands",
    "training": "models losses build runs report reproduce export commands",
    "runs": "report reproduce export commands",
    "report": "losses models data layers teacher distiller training build runs reproduce export commands",
    "reproduce": "export commands",
    "export": "reproduce commands",
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


def test_no_component_swallows_unknown_arguments() -> None:
    """No `**kwargs` in anything a `_target_` can name."""
    for folder in ("losses", "models", "data"):
        for file in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    assert node.args.kwarg is None, f"{file}:{node.lineno} {node.name}"
