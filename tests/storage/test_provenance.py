"""The commit of a result is that of the package's own source tree."""

import subprocess
from pathlib import Path

import pytest

from nst.storage import record


def test_the_commit_of_a_repository_that_only_contains_the_installed_package_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.check_output(["git", *settings, *arguments], cwd=tmp_path, text=True).strip()

    installed = tmp_path / ".venv" / "nst" / "storage" / "record.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("# installed\n")
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "a user's own project")
    monkeypatch.setattr(record, "__file__", str(installed))
    assert record.commit() is None
    git("add", ".")
    git("commit", "--message", "the source tree")
    assert record.commit() == git("rev-parse", "HEAD")
    installed.write_text("# changed\n")
    assert record.commit() == git("rev-parse", "HEAD") + "+dirty"
