"""Ten steps of each method are what they were; tests/golden/record.py compares them digit by digit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden import record


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(record.CASES))
def test_ten_steps_are_what_they_were(name: str, folder: Path) -> None:
    stored = json.loads(record.STORED.read_text(encoding="utf-8"))
    if stored["versions"] != record.VERSIONS:
        pytest.skip(f"recorded with {stored['versions']}: others draw other weights")
    found = record.metrics(name, folder)
    assert len(found) == record.STEPS
    for line, before in zip(found, stored[name], strict=True):
        # Processors add in another order; what is drawn or computed otherwise differs far more.
        assert line == pytest.approx(before, rel=1e-3, abs=1e-3)
