"""Memory that a CPU step frees stays with the process, so that the next step finds it mapped.

glibc gives large blocks back to the kernel as soon as they are free, and every step pays anew for zeroed
pages: ten thousand to some hundred thousand page faults, up to a fifth of its time (docs/benchmarks.md).

By `mallopt`, before torch is loaded: environment variables would have to be set before the process starts,
and a second start costs its time. A library must not change the allocator of the program that imports it, so
only commands that compute call this, and processes of `--devices`.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from sslkit.core.files import text_of

COMMANDS = frozenset({"pretrain", "finetune", "probe", "embed", "bench", "visualize", "demo"})
"""Those that train, or read features."""

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # malloc.h

_LARGEST = 2**30
"""Bytes from which a block is still mapped by itself and given back, as a decoded set of images may be."""
_FREE = 2**31 - 1  # an int is what mallopt takes
"""Bytes that may lie free at the end of the heap."""
_GROWTH = 64 * 2**20
"""Bytes by which the heap grows beyond what is asked for."""


def keep_memory() -> bool:
    """Make this process's allocator keep what is freed, for good; returns whether it does.

    Only glibc, and only where nobody has chosen otherwise: no other allocator is loaded (jemalloc,
    tcmalloc, mimalloc), no variable MALLOC_… or GLIBC_TUNABLES is set. Forked processes inherit it.
    """
    if not _is_glibc() or _chosen(os.environ) or _replaced():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Until version 2.34 glibc refuses thresholds above 32 MiB: then no block is mapped by itself.
    mapped = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_MAX, 0)
    return bool(mapped and mallopt(_TRIM_THRESHOLD, _FREE) and mallopt(_TOP_PAD, _GROWTH))


def _is_glibc() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False


def _chosen(environment: Mapping[str, str]) -> bool:
    """Whether the user has set options of malloc."""
    return "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in environment
    )


def _replaced() -> bool:
    """Whether another allocator is loaded before the C library's: they all have malloc in their names."""
    if not (maps := text_of(Path("/proc/self/maps"))):
        return bool(os.environ.get("LD_PRELOAD"))
    return re.search(r"/[^/\n]*(malloc|hoard)[^/\n]*\.so", maps) is not None
