"""One run, one process: a lock file in the run's folder says who writes there.

    run.lock  {"pid": 4242, "host": "node7", "started": "2026-03-01T12:00:00+0100", "birth": "8815"}

It is created with O_EXCL and removed at the end. A process that was killed leaves it behind; on its own host
that is seen and the lock is taken over, from another host nobody can see it, so a person decides.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sslkit.core.console import Console
from sslkit.core.errors import UserError

if sys.platform != "win32":
    import fcntl

LOCK_FILE = "run.lock"


@contextmanager
def locked(folder: Path, console: Console) -> Iterator[None]:
    """Hold the lock of a run's folder.

    Raises:
        UserError: another process holds it, or may hold it on another host.
    """
    with _alone(folder):
        if (folder / LOCK_FILE).is_file():
            refuse_if_locked(folder)
            console.say(f"{folder}: taking over the lock of process {_told(folder)}, which is gone")
            (folder / LOCK_FILE).unlink(missing_ok=True)
        _create(folder / LOCK_FILE)
    try:
        yield
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)


@contextmanager
def held(folder: Path, console: Console, cure: str) -> Iterator[None]:
    """The lock and log of a run's folder; what the disk refuses inside ends the run in one line.

    Args:
        cure: what to do about that.
    """
    try:
        with locked(folder, console), console.copied_to(folder / "log.txt"):
            yield
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(f"{problem.filename or folder}: {reason}", cure, code=1) from None


def refuse_if_locked(folder: Path) -> None:
    """Nothing if no process, or one that is gone, holds the folder's lock.

    Raises:
        UserError: one does, or may.
    """
    if not (folder / LOCK_FILE).is_file():
        return
    holder, lock = _holder(folder), folder / LOCK_FILE
    problem = f"{folder} is in use by process {_told(folder)}"
    if holder.get("host", socket.gethostname()) != socket.gethostname():
        raise UserError(problem, f"wait for it; if it is gone, delete {lock}")
    if alive(holder.get("pid"), holder.get("birth")):
        raise UserError(problem, "wait for it, or stop it: it saves before it ends")


def alive(pid: Any, birth: str | None = None) -> bool:
    """Whether a process of this host runs; `birth` tells it from a later one with the same number."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    if birth is not None and _birth(pid) not in (birth, None):
        return False
    if sys.platform == "win32":  # os.kill would end it there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _create(lock: Path) -> None:
    """Write the lock file.

    Raises:
        UserError: another process was faster, or the folder can't be written.
    """
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "birth": _birth(os.getpid()),
    }
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        raise UserError(f"{lock.parent} was taken by process {_told(lock.parent)} just now") from None
    except OSError as problem:
        raise UserError(f"{lock} can't be written: {problem.strerror}", "make the folder writable") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(holder) + "\n")


def _holder(folder: Path) -> dict[str, Any]:
    """Who holds the lock; empty if the file is gone, or empty as its process was killed that moment."""
    for _ in range(5):
        with suppress(OSError, ValueError):
            holder = json.loads((folder / LOCK_FILE).read_text(encoding="utf-8"))
            if isinstance(holder, dict):
                return holder
        time.sleep(0.02)  # created, and not yet written
    return {}


def _told(folder: Path) -> str:
    holder = _holder(folder)
    return f"{holder.get('pid', '?')} on {holder.get('host', '?')} (since {holder.get('started', '?')})"


def _birth(pid: int) -> str | None:
    """When a process began, in the kernel's ticks since boot; None where there is no /proc."""
    try:
        return (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()[19]
        )
    except (OSError, IndexError):
        return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this host at a time looks at the lock and replaces it."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders; O_EXCL still holds
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
