"""Processes that read images: how many, and batches even if they die or hang.

Lost workers are started anew at the batch that is missing.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from sslkit.core.console import Console
from sslkit.core.distributed import environment
from sslkit.core.errors import UserError
from sslkit.data.loading import limits

_Part = TypeVar("_Part")
_Found = TypeVar("_Found")

RESTARTS = 3
"""How often workers are started anew for one batch."""
PATIENCE = 300.0
"""Seconds for one batch: storage may be slow, but a worker may also hang for ever."""
LOOK = 5.0
"""Seconds between two looks at whether the workers live; the loader's `timeout`."""
DIED = "a process that reads images died (out of memory?)"
_SLOW = "no batch came for {:.0f} s"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reading_workers(on_cpu: bool) -> int:
    """Processes that read images while a model trains: one per core for a GPU, at most eight.

    On the CPU they take cores from the training itself, and one feeds several of those. Processes that train
    together share the cores of their machine.
    """
    cores = max(1, usable_cores() // environment.local_count())
    return max(1, cores // 4) if on_cpu else min(8, cores)


def mapped(
    work: Callable[[_Part], _Found], parts: Iterable[_Part], workers: int, doing: str
) -> Generator[_Found, None, None]:
    """`work` of each part, in order, by processes that are never far ahead of the caller.

    Args:
        workers: processes; 0 works in this one.
        doing: what they do, for the message: "read images".

    Raises:
        UserError: while iterating, when a process died.
    """
    if not workers:
        yield from map(work, parts)
        return
    pool = ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    pending: deque[Future[_Found]] = deque()
    try:
        for part in parts:
            pending.append(pool.submit(work, part))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        cure = "out of memory? --workers 1 needs least of it"
        raise UserError(f"a process that {doing} died", cure, code=1) from None
    finally:
        pool.shutdown(cancel_futures=True)


class WorkersLost(UserError):
    """The processes that read images died or hung, and restarting them did not help."""


class _Lost(Exception):
    """Workers died or hung."""


def unbroken(loader: Callable[[int], DataLoader[Any]], console: Console) -> Generator[Any, None, None]:
    """All batches of `loader(0)`. When workers are lost, `loader(n)` goes on after the n delivered ones."""
    delivered = lost = 0
    limits.allow_open_files()
    while True:
        if lost:  # a new worker must not inherit the pass that failed: it would try to end it
            gc.collect()
        try:
            made = loader(delivered)
            with closing(_pass(made)) as batches:
                for batch in batches:
                    if not delivered and made.num_workers:
                        _tell_needed(batch, made, console)
                    delivered, lost = delivered + 1, 0
                    yield batch
            return
        except _Lost as problem:
            lost += 1
            if lost > RESTARTS:
                raise WorkersLost(
                    f"the processes that read images failed {lost} times at the same batch: {problem}",
                    f"fewer --workers (data.workers in config.toml); 0 shows the fault{limits.shortage()}",
                    code=1,
                ) from None
            why = limits.shortage() if lost == 1 else ""
            console.warn(f"{problem}{why}; reading starts again at the same batch ({lost} of {RESTARTS})")


def _tell_needed(batch: Any, loader: DataLoader[Any], console: Console) -> None:
    """Before the first step: what is too small for all batches on their way, in one line."""
    if needs := limits.needed(batch, loader.num_workers, loader.prefetch_factor or 1):
        console.warn(f"batches from {loader.num_workers} processes take up to {needs}", "fewer --workers")


def _pass(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """One pass over a loader, in a frame of its own that goes when it fails."""
    with _workers(loader) as (batches, children), _Watchdog(children) as watchdog:
        yield from _patiently(batches, watchdog)


class _Watchdog:
    """Kills workers that keep this process waiting where DataLoader's timeout does not reach.

    A batch's memory is handed over by its worker on request, and a worker that is stopped never answers.
    """

    def __init__(self, children: Iterable[BaseProcess]) -> None:
        self._children, self._ended = children, threading.Event()
        self.asked: float | None = None  # when the batch was asked for that is waited for
        self.killed = False  # then the workers died by this, and the reason is that they hung
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK):
            asked = self.asked
            if asked is not None and time.monotonic() - asked > PATIENCE + 2 * LOOK:
                self.killed = True
                for child in self._children:
                    child.kill()
                return


def _patiently(batches: Iterator[Any], watchdog: _Watchdog) -> Iterator[Any]:
    """The batches; _Lost when a worker is dead, or when a batch takes longer than PATIENCE."""
    while True:
        watchdog.asked = asked = time.monotonic()
        while True:
            try:
                batch = next(batches)
                break
            except StopIteration:
                return
            except (OSError, EOFError) as problem:  # it died, or was killed, while it handed a batch over
                if str(problem).startswith("Caught "):  # what a worker itself met and reported
                    raise
                raise _Lost(_SLOW.format(time.monotonic() - asked) if watchdog.killed else DIED) from None
            except RuntimeError as problem:
                if (reason := _why_lost(str(problem), time.monotonic() - asked, watchdog.killed)) is None:
                    raise
                if reason:
                    raise _Lost(reason) from None
        watchdog.asked = None
        yield batch


def _why_lost(text: str, waited: float, killed: bool) -> str | None:
    """Why the workers are lost, from DataLoader's message; "": wait on; None: another fault."""
    if text.startswith("DataLoader timed out"):
        return _SLOW.format(waited) if waited >= PATIENCE else ""
    if text.startswith("DataLoader worker"):
        return _SLOW.format(waited) if killed else DIED
    if "shared memory" in text or "</torch_" in text or "Too many open files" in text:
        return "images can't be handed over: " + text.strip().splitlines()[-1]
    return None


@contextmanager
def _workers(loader: DataLoader[Any]) -> Iterator[tuple[Iterator[Any], set[BaseProcess]]]:
    """A pass over the loader, and its processes; when they are lost, none of them stays."""
    before, on_death = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    children = set(multiprocessing.active_children()) - before
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises wherever the main thread happens to be, even inside an optimizer's step;
        # `_patiently` looks after the workers instead.
        signal.signal(signal.SIGCHLD, on_death)
    try:
        yield batches, children
    except _Lost:
        for child in children:  # one that hangs would not listen to anything gentler
            child.kill()
        raise
