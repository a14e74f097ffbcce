"""What batches on their way from other processes take of the system: shared memory and open files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor

_SMALL = 1 << 30
"""Bytes of shared memory below which a warning is due."""
_FEW = 1024
"""Open files likewise."""
ENOUGH = 65536
"""Open files that are asked for."""
_OWN = 64
"""Files that a process has open beside batches."""


def allow_open_files() -> None:
    """Raise the process's own limit towards what the system allows: each tensor on its way holds one open."""
    with suppress(ImportError, OSError, ValueError):  # no such limit, or it may not be raised
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def shortage() -> str:
    """Whichever of the two is small, as a remark behind a cure; else empty."""
    remarks = []
    if (room := shared_memory()) is not None and room < _SMALL:
        remarks.append(f"/dev/shm has only {room / 2**20:.0f} MB (docker: --shm-size=2g)")
    if (files := open_files()) is not None and files < _FEW:
        remarks.append(f"only {files} files may be open (ulimit -n {4 * _FEW})")
    return "".join(f"; {one}" for one in remarks)


def needed(batch: Any, workers: int, prefetch: int) -> str:
    """What batches like this one take while the workers are ahead, where it is more than there is."""
    tensors, ahead = list(_tensors(batch)), workers * prefetch
    size, count = ahead * sum(one.nbytes for one in tensors), ahead * len(tensors) + _OWN
    needs = []
    if (room := shared_memory()) is not None and size > room:
        needs.append(
            f"{size / 2**20:.0f} MB of /dev/shm, which has {room / 2**20:.0f} (docker: --shm-size=2g)"
        )
    if (files := open_files()) is not None and count > files:
        needs.append(f"{count} open files, of which {files} are allowed (ulimit -n {4 * _FEW})")
    return " and ".join(needs)


def shared_memory() -> int | None:
    """Bytes of it, None where there is no such place."""
    try:
        return shutil.disk_usage("/dev/shm").total
    except OSError:
        return None


def open_files() -> int | None:
    """How many this process may have, None without a limit."""
    with suppress(ImportError, OSError):
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return None if soft == resource.RLIM_INFINITY else soft
    return None


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict | list | tuple):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from _tensors(part)
