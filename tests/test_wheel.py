"""What `pip install` installs: built without a network from a copy of the sources, unpacked, and used from an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from tests.conftest import ROOT

import nst

IN_SOURCES = [
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CITATION.cff",
    "CHANGELOG.md",
    "train.py",
]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"


def build(kind: str, sources: Path, folder: Path) -> Path:
    """The `wheel` or `sdist` of these sources, as a build frontend asks setuptools for it."""
    folder.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, kind, str(folder)], cwd=sources, check=True, capture_output=True)
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the wheel of the source distribution, as they lie in an environment."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    hidden = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, sources / name, ignore=hidden)
    for name in IN_SOURCES:
        shutil.copy(ROOT / name, sources / name)
    with tarfile.open(build("sdist", sources, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", unpacked, folder / "wheel")) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def call(installed: Path, folder: Path, *words: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """`nst WORDS` in a folder, of the unpacked wheel; `before` runs first."""
    code = f"{before}\nimport sys; sys.argv[0] = 'nst'\nfrom nst.cli.main import main\nmain()"
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(installed: Path) -> None:
    tracked = [(ROOT / "src", ROOT / "src/nst"), (ROOT, ROOT / "configs")]
    expected = {
        ("nst/" if top == ROOT else "") + str(file.relative_to(top))
        for top, folder in tracked
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {str(file.relative_to(installed)) for file in installed.glob("nst/**/*") if file.is_file()} == expected
    [metadata] = installed.glob("nst-*.dist-info")
    assert {file.name for file in installed.iterdir()} == {"nst", metadata.name}
    assert "nst = nst.cli.main:main" in (metadata / "entry_points.txt").read_text()
    assert (metadata / "licenses" / "LICENSE").is_file()


def test_a_new_project_trains_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    """In an empty folder: configurations, tables and the template are files of the package, and nothing is of the repository."""
    light = "import sys; sys.modules['torch'] = None"
    for words, text in {
        ("reproduce", "table=quick/digit"): "did you mean quick/digits",
        ("new", "mine"): "next: cd mine",
    }.items():
        done = call(installed, tmp_path, *words, before=light)
        assert text in done.stdout + done.stderr, done
        assert "Traceback" not in done.stderr
    words = ("train", "experiment=first", "trainer=quick", "teacher.train.epochs=1", "teacher.min_accuracy=0")
    done = call(installed, tmp_path / "mine", *words, before=f"import nst; assert '{installed}' in nst.__file__")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("mine/outputs/stripes/large-small/*/*/summary.json"))


def test_version_and_lower_bounds_are_the_same_everywhere() -> None:
    """`tests/lowest.txt` has the lower bound of each requirement, but for the tests' own tools and the extras that it leaves out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert (
        re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == project["version"] == nst.__version__
    )
    extras = project["optional-dependencies"]
    needed = [
        *project["dependencies"],
        *(r for name in extras if name not in ("dev", "docs", "ray") for r in extras[name]),
    ]
    lowest = dict(line.split("==") for line in (ROOT / "tests/lowest.txt").read_text().split())
    assert len(lowest) == len(needed)
    for requirement in map(Requirement, needed):
        [bound] = [each.version for each in requirement.specifier if each.operator == ">="]
        assert Version(lowest[requirement.name]) == Version(bound), requirement
