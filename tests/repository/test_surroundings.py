"""What surrounds a run may be broken: its output, its log, its locale, its home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import write_photos

WORDS = ["-b", "test_vit", "--size", "32", "--batch-size", "8", "--epochs", "2", "--workers", "0"]
WORDS += ["--device", "cpu", "--precision", "float32", "--pictures", "0", "-s", "run.log_every=1"]


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = " ".join([sys.executable, "-m", "sslkit", "pretrain", "bilder-ü", *WORDS, "-o", "run"])
    return subprocess.run(
        ["bash", "-c", line.replace("SSLKIT", words)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        errors="replace",
        timeout=240,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_photos(tmp_path / "bilder-ü", 16)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "SSLKIT >&-",
        "SSLKIT 2>&-",
        "SSLKIT >&- 2>&- <&-",
        "SSLKIT >/dev/full 2>/dev/full",
        "SSLKIT 2>&1 | true; exit ${PIPESTATUS[0]}",
        "SSLKIT --json >&-",
    ],
)
def test_output_that_goes_nowhere(folder: Path, line: str) -> None:
    done = shell(line, folder)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert (folder / "run/encoder.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"HOME": "/nonexistent/home", "XDG_CACHE_HOME": "/nonexistent/cache"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_locale_and_home(folder: Path, environment: dict[str, str]) -> None:
    done = shell("SSLKIT", folder, **environment)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert (folder / "run/report.html").is_file()


@pytest.mark.slow
def test_no_home_at_all(folder: Path) -> None:
    done = shell("unset HOME; SSLKIT", folder)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def own_mount(place: str, size: str, line: str) -> str:
    """The line where a file system of that size lies at the place, for it alone."""
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
    )
    if tried.returncode:
        pytest.skip("this process may not mount file systems of its own")
    return f"unshare --mount bash -c 'mount -t tmpfs -o size={size} tmpfs {place} && {line}'"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
def test_a_file_system_that_is_really_full(folder: Path) -> None:
    shown = f"ls /mnt/run/checkpoints > {folder}/left; exit $code"
    line = "SSLKIT -o /mnt/run --epochs 4 --save-every 2 -s model.patch_size=8; "
    line += "cat /dev/zero > /mnt/other 2>/dev/null; truncate -s -1M /mnt/other; "  # who fills it comes later
    line += f"{sys.executable} -m sslkit pretrain --resume /mnt/run --epochs 10; code=$?; " + shown
    done = shell(own_mount("/mnt", "60m", line), folder)
    assert done.returncode == 1
    assert done.stderr.count("No space left on device") == 3
    assert "error: step 14 was not saved in /mnt/run/checkpoints" in done.stderr
    assert "hint: make room; older checkpoints are whole" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "left").read_text().split() == ["step-00000006", "step-00000008"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
def test_a_shared_memory_that_is_really_small(folder: Path) -> None:
    line = "SSLKIT --workers 2 --size 96 --batch-size 16 --cache off"
    done = shell(own_mount("/dev/shm", "256k", line), folder)
    assert done.returncode == 1
    assert "(3 of 3)" in done.stderr
    assert "hint: fewer --workers" in done.stderr
    assert "/dev/shm has only 0 MB" in done.stderr
    first = next(line for line in done.stderr.splitlines() if "(1 of 3)" in line)
    assert "/dev/shm has only 0 MB (docker: --shm-size=2g)" in first
    assert "Traceback" not in done.stderr
    assert list((folder / "run/checkpoints").glob("step-*"))


LIMITED = """
import resource, sys
from sslkit.cli import app
resource.setrlimit(resource.RLIMIT_NOFILE, ({}, {}))
sys.argv = ["sslkit", *{!r}]
app.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it counts in /proc")
@pytest.mark.parametrize(("hard", "told"), [(4096, False), (72, True)])
def test_few_open_files(folder: Path, hard: int, told: bool) -> None:
    """The soft limit is raised without a word; where the hard one is too low, one line says both numbers."""
    words = ["pretrain", "bilder-ü", *WORDS, "-o", "run", "--workers", "3", "--cache", "off", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(72, hard, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    warned = [line for line in done.stderr.splitlines() if "open files" in line]
    assert "Traceback" not in done.stderr
    assert len(warned) == told, done.stderr
    assert not told or "of which 72 are allowed (ulimit -n 4096) (fewer --workers)" in warned[0]
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
