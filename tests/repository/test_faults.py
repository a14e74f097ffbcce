"""The short versions of tests/faults; `make faults` runs the long ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[1] / "faults"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "times", "says"),
    [
        ("kill.py", "12", "committed checkpoints lost: 0, damaged: 0"),
        ("rot.py", "200", "bit: 200 of 200 found"),
    ],
)
def test_a_script_of_faults(script: str, times: str, says: str) -> None:
    line = [sys.executable, str(FAULTS / script), "--times", times]
    done = subprocess.run(line, capture_output=True, text=True, timeout=500, cwd=FAULTS.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert says in done.stdout
