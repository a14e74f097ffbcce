"""How much memory may still be taken, here or on a device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from sslkit.core.files import text_of


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can take without swapping and within its control groups; 0 if unknown.

    Args:
        root: where `proc` and `sys` are. Elsewhere than on Linux half of the machine's memory counts as free.
    """
    meminfo = text_of(root / "proc/meminfo")
    if match := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE):
        return max(0, min([int(match[1]) * 1024, *_left_in_groups(root)]))
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 0


def free_device_memory(device: torch.device) -> int:
    """Bytes that are free on a device that is not the CPU; 0 if it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return 0


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each limit on memory above this process leaves, version 2 and 1; files in cache give way."""
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top = root / ("sys/fs/cgroup/memory" if kinds else "sys/fs/cgroup")
        names = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
        *both, cached_name = names if kinds else ("max", "current", "inactive_file")
        below = Path(path.lstrip("/"))
        for group in (below, *below.parents):  # in a container the lower ones may not be visible
            limit, used = (text_of(top / group / f"memory.{name}").strip() for name in both)
            if limit.isdigit() and used.isdigit():
                told = text_of(top / group / "memory.stat")
                cached = re.search(rf"^{cached_name} (\d+)", told, re.MULTILINE)
                yield int(limit) - int(used) + int(cached[1] if cached else 0)
