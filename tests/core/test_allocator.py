"""What a process frees stays mapped, by the kernel's own count of page faults."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from sslkit.core import allocator
from sslkit.training.loop.launch import launch

BLOCK = 40 * 2**20
PAGES = BLOCK // os.sysconf("SC_PAGE_SIZE")
"""Of one block below."""

PROGRAM = """
import os, sys
from sslkit.core.allocator import keep_memory
BLOCK = 40 * 2**20
{faults}
print(keep_memory() if sys.argv[1] == "keep" else None, faults())
"""

pytestmark = pytest.mark.skipif(not allocator._is_glibc(), reason="this C library is not glibc")


def faults(blocks: int = 8) -> int:
    """Page faults while blocks of 40 MB are taken, written and freed, the first two left out."""
    import ctypes
    import resource

    c = ctypes.CDLL(None)
    c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    c.free.argtypes, before = [ctypes.c_void_p], 0
    for number in range(2 + blocks):
        if number == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        # Beside the large ones smaller ones of changing sizes, as in a step.
        taken = [c.malloc(BLOCK - 4096 * number), c.malloc(2**20 + 8192 * number)]
        ctypes.memset(taken[0], 1, BLOCK - 4096 * number)
        ctypes.memset(taken[1], 1, 2**20)
        for block in taken:
            c.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def told(word: str, changes: Mapping[str, str] = MappingProxyType({})) -> tuple[str, int]:
    """(what `keep_memory` says, page faults) of a process of its own."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_") and n != "GLIBC_TUNABLES"}
    program = [sys.executable, "-c", PROGRAM.format(faults=inspect.getsource(faults)), word]
    done = subprocess.run(
        program,
        env={**clean, **changes},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    said, counted = done.stdout.split()
    return said, int(counted)


def test_freed_blocks_are_not_faulted_in_again() -> None:
    assert told("leave")[1] > 4 * PAGES  # what there is to mend
    said, counted = told("keep")
    assert said == "True"
    assert counted < PAGES // 4


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_ARENA_MAX": "2"}, {"MALLOC_TRIM_THRESHOLD_": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}],
)
def test_somebody_s_own_settings_stay(variables: Mapping[str, str]) -> None:
    assert told("keep", variables)[0] == "False"


@pytest.mark.parametrize("name", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so"])
def test_another_allocator_is_left_alone(name: str, tmp_path: Path) -> None:
    import _ctypes

    shutil.copy(_ctypes.__file__, tmp_path / name)  # any library, under its name
    assert told("keep", {"LD_PRELOAD": str(tmp_path / name)})[0] == "False"


def test_older_glibc_maps_no_block_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the high threshold is refused, as here an imagined C library does."""
    asked = []

    class Older:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            asked.append((parameter, value))
            return int((parameter, value) != (-3, 2**30))

    monkeypatch.setattr(allocator, "_chosen", lambda environment: False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Older)
    assert allocator.keep_memory()
    assert asked[:2] == [(-3, 2**30), (-4, 0)]


@pytest.mark.parametrize(
    ("command", "kept"), [("pretrain", True), ("embed", True), ("methods", False), ("--help", False)]
)
def test_only_commands_that_compute_are_changed(
    command: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslkit.cli import app

    asked: list[bool] = []
    monkeypatch.setattr(allocator, "keep_memory", lambda: asked.append("torch._C" in sys.modules))
    monkeypatch.setattr(sys, "argv", ["sslkit", command, "--help"])
    with pytest.raises(SystemExit):
        app.main()
    assert bool(asked) is kept


@pytest.mark.slow
def test_processes_of_devices_keep_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    assert launch(faults, (), 2) < PAGES // 4
