"""YAML that is read is checked first: bounded, plain, and wrong files are named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nst.yaml_files import check_yaml

ROOT = Path(__file__).parents[1]
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
BAD = {
    "aliases": (BOMB, r"with its aliases .* values"),
    "itself": ("a: &a [*a]\n", "hold themselves"),
    "depth": ("[" * 5000 + "]" * 5000, "nested too deeply|invalid YAML"),
    "code": ("a: !!python/object/apply:os.mkdir [ran]\n", "line 1 has the tag .*python"),
    "own tag": ("a: !mine 3\n", "the tag !mine"),
    "no yaml": ("a: [1\n", "invalid YAML"),
    "binary": (b"\xff\xfe\x00a", "invalid YAML"),
    "size": ("# " + "x" * 2**20, "1,048,578 bytes"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_read(tmp_path: Path, kind: str) -> None:
    content, message = BAD[kind]
    file = tmp_path / "table" / "own.yaml"
    file.parent.mkdir()
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"(?s)own\.yaml: .*({message})"):
        check_yaml(file)


def test_every_file_of_the_project_is_read(tmp_path: Path) -> None:
    for file in (ROOT / "configs").rglob("*.yaml"):
        check_yaml(file)
    (tmp_path / "merged.yaml").write_text("a: &a {x: 1, y: 2023-01-01}\nb: {<<: *a, z: [1.5, true, null, text]}\n")
    check_yaml(tmp_path / "merged.yaml")


def test_a_configuration_of_ones_own_is_checked(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text(BOMB)
    (tmp_path / "model" / "code.yaml").write_text(BAD["code"][0])
    for name in ("own", "code"):
        words = [sys.executable, str(ROOT / "train.py"), f"model={name}", "dry_run=true"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert f"{name}.yaml: " in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()
