"""What is published is all that is kept: who unpacks the source can build, test and contribute."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = {".gitignore"}
"""What is kept here and means nothing without the repository; hatchling adds it by itself."""


def test_everything_that_is_kept_is_in_the_source_distribution() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no repository: nothing tells what is kept")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("git does not answer here")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    kept = {name.partition("/")[0] for name in listed.stdout.split()}
    assert kept - included - LEFT_OUT <= {"pyproject.toml"}, "hatchling adds pyproject.toml by itself"
    assert all((ROOT / name).exists() for name in included)
    assert {"Makefile", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "README.md"} <= included
