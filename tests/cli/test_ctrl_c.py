"""Ctrl-C at any moment of a run of two processes: one line, code 130, nobody left, and a run that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sslkit.training.pretrain.pretrain import resume

WORDS = ["fractal:16", "-b", "test_vit", "--size", "32", "--batch-size", "8", "--epochs", "4"]
WORDS += ["--device", "cpu", "--devices", "2", "--workers", "0", "--pictures", "0", "--save-every", "1"]
MARK = "SSLKIT_TEST_OF_CTRL_C"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")


def belonging(mark: str) -> list[int]:
    """The processes whose environment holds the mark, zombies left out."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"{MARK}={mark}".encode() in (place / "environ").read_bytes()
            if ours and (place / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(place.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def heard() -> None:
    """A shell without job control starts what is behind an & deaf."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()


def run_until(reached: Callable[[str], object], folder: Path) -> tuple[int, str, list[int]]:
    """(exit code, stderr, processes left) of a run that hears Ctrl-C, as a terminal sends it, there."""
    mark = str(folder)
    started = subprocess.Popen(
        [sys.executable, "-m", "sslkit", "pretrain", *WORDS, "-o", "run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    while started.poll() is None and not reached(mark):
        time.sleep(0.03)
    if started.poll() is None:
        os.killpg(started.pid, signal.SIGINT)
    told = started.communicate(timeout=120)[1]
    limit = time.monotonic() + 10
    while (left := belonging(mark)) and time.monotonic() < limit:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return started.returncode, told, left


def after(seconds: float) -> Callable[[str], object]:
    """So long after Python has begun to hear signals, which on a busy machine takes a while."""
    began: list[float] = []

    def reached(mark: str) -> bool:
        if not began and any(map(hears, belonging(mark))):
            began.append(time.monotonic())
        return bool(began) and time.monotonic() > began[0] + seconds

    return reached


def hears(process: int) -> bool:
    """Whether it has a handler for SIGINT."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGINT - 1))


def test_while_modules_are_imported(tmp_path: Path) -> None:
    for seconds in (0.3, 0.8, 1.5):
        assert run_until(after(seconds), tmp_path) == (130, "error: interrupted\n", [])
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "reached",
    [
        lambda mark: len(belonging(mark)) > 3,  # this one, the tracker, the server that forks, and the first
        lambda mark: list(Path(mark).glob("run/checkpoints/*")),
        lambda mark: Path(mark, "run/encoder.safetensors").exists(),
    ],
    ids=["processes meet", "it saves", "it has ended"],
)
def test_later(reached: Callable[[str], object], tmp_path: Path) -> None:
    code, told, left = run_until(reached, tmp_path)
    assert left == []
    assert code in (0, 130), told
    assert "Traceback" not in told
    last = [line for line in told.splitlines() if line.startswith(("error: interrupted", "stopped at step"))]
    assert last == told.splitlines()[-1:] if code else last == [], told
    if (run := tmp_path / "run").exists():
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
        if facts["status"] != "completed":
            resume(run, devices=1)
        assert (run / "encoder.safetensors").is_file()
        assert not [path for path in run.rglob("*") if ".tmp" in path.name]
