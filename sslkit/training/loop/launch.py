"""`--devices N`: N processes of this machine that train together, each with a device of its own.

Clusters and restarts are torchrun's business; here one command starts the processes, passes signals on and
tells what became of them. Each process is a session of its own, so that Ctrl-C reaches only the one in front,
which asks the others once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import connection, parent_process, resource_tracker
from typing import Any

import torch
from torch import multiprocessing

from sslkit.core import allocator
from sslkit.core.errors import UserError
from sslkit.data.loading.workers import usable_cores
from sslkit.training.loop.signals import Interrupted

GRACE = 20.0
"""Seconds that the others have to save and end by themselves when one has failed."""
STOPPING = 5.0
"""The same where one has stopped because it was asked to: it has saved by then, if there was something."""
STOPS = (signal.SIGINT, signal.SIGTERM)
WRITING = 600.0
"""The same where one of them has said that it is writing: storage may be slow."""
BEGINNING = 2.0
"""The same where all were asked to stop and none trains yet: one that waits for another hears nothing."""
_LOOK = 0.5
"""Seconds between two looks at them."""

_Outcome = tuple[str, Any]
"""("done", what the work returned), ("error", (message, hint, code)), ("stopped", code), ("stalled", None)"""

_WORDS = ("training", "writing")
"""What a process says before its outcome."""

_front: Any = None  # in a process that was launched: the way to tell the one in front


_trains = False  # in such a process: whether it has come as far as the loop


def launch(work: Callable[..., Any], arguments: tuple[Any, ...], count: int, verb: str = "pretrain") -> Any:
    """`work(*arguments)` in `count` processes; returns what the first of them returned.

    Args:
        work: a function of a module; it and its arguments are pickled.
        verb: the command that goes on with a run.

    Raises:
        UserError: what the first process that failed has raised, or that one died.
        Interrupted: all were asked to stop, and did.
    """
    context = _context(work.__module__)
    environment = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = _free_port()
    processes, ends = [], []
    for number in range(count):
        ours, theirs = context.Pipe(duplex=False)
        place = {**environment, "RANK": number, "LOCAL_RANK": number}
        processes.append(context.Process(target=_begin, args=(place, theirs, work, arguments)))
        ends.append(ours)
    said: set[str] = set()
    with _passed_on(processes) as asked:
        if sys.platform != "win32":  # before: it opens the ears again that `_later` has closed
            resource_tracker.ensure_running()
        with _later():  # who is being started would not hear of it, and the server that forks would die of it
            for process in processes:
                process.start()
        outcomes = _outcomes(processes, ends, asked, said)
    finished = all(outcome and outcome[0] == "done" for outcome in outcomes)
    if asked and not finished and not _own_errors(outcomes):
        stop = Interrupted(128 + asked[0])
        stop.untold = "training" not in said
        raise stop
    return _judged(outcomes, [process.exitcode for process in processes], verb)


def say_writing() -> None:
    """Ask the process in front, if there is one, to wait for what this one writes before it ends."""
    _say("writing")


def say_training() -> None:
    """Tell it that from here on this one hears signals between two steps, and saves."""
    global _trains
    _trains = True
    _say("training")


def _say(word: str) -> None:
    if _front is not None:
        with suppress(OSError):  # it is gone, and waits for nobody
            _front.send((word, None))


def _context(module: str) -> Any:
    """New processes are forked from one that has only imported the module: torch once, not each time."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sslkit.training.loop.session", module])
    return context


def _begin(place: Mapping[str, Any], end: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """One process from its start to its end."""
    global _front
    _front = end
    if hasattr(os, "setsid"):
        os.setsid()
    os.environ.update({name: str(value) for name, value in place.items()})
    allocator.keep_memory()  # a process of its own, whose allocator knows nothing of its parent's
    threading.Thread(target=_follow_parent, daemon=True).start()
    if "OMP_NUM_THREADS" not in os.environ:  # they share the cores
        torch.set_num_threads(max(1, usable_cores() // place["LOCAL_WORLD_SIZE"]))
    asked: list[int] = []
    try:
        _listen(asked)
        outcome: _Outcome = ("done", work(*arguments))
    except UserError as problem:
        outcome = ("error", (problem.message, problem.hint, problem.code))
    except Interrupted as stop:
        outcome = ("stopped", stop.code)
    except Exception:
        if not asked:  # else what fails because the others have stopped
            raise
        outcome = ("stopped", 128 + asked[0])
    end.send(outcome)


def _listen(asked: list[int]) -> None:
    """Until the loop listens itself, a signal ends this process at once: there is nothing to save yet.

    After the loop all is written, or what went wrong is on its way.
    """

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        if not _trains:
            raise Interrupted(128 + number)

    for number in STOPS:
        signal.signal(number, stop)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


@contextmanager
def _later() -> Iterator[None]:
    """Signals to stop that come inside are heard at its end; processes that begin inside do not hear them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_parent() -> None:
    """Without the process in front nobody could stop this one: then it saves and ends."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _passed_on(processes: list[Any]) -> Iterator[list[int]]:
    """Signals to this process become signals to all of them; yields those to stop that have come."""
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        asked.extend([number] if number in STOPS else [])
        for process in processes:
            if process.pid is not None and process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    if threading.current_thread() is not threading.main_thread():  # signals are somebody else's business
        yield asked
        return
    old = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _outcomes(
    processes: list[Any], ends: list[Any], asked: list[int], words: set[str]
) -> list[_Outcome | None]:
    """What each has sent, None where one died; when one fails the others get a while, and then no longer.

    Args:
        asked: signals to stop that have come.
        words: what the processes say on the way is added.
    """
    outcomes: list[_Outcome | None] = [None] * len(processes)
    waiting, failed_at = dict(zip(ends, range(len(ends)), strict=True)), float("inf")
    writing: set[int] = set()
    asked_at = float("inf")
    for process, end in zip(processes, ends, strict=True):
        waiting[process.sentinel] = waiting[end]
    while any(process.is_alive() for process in processes):
        for ready in connection.wait(list(waiting), timeout=_LOOK):
            number = waiting.pop(ready)
            said = None
            if ready is ends[number]:
                with suppress(EOFError):
                    said = ready.recv()
            if said and said[0] in _WORDS:
                words.add(said[0])
                writing.update([number] if said[0] == "writing" else [])
                waiting[ready] = number  # its outcome follows
                continue
            outcomes[number] = said or outcomes[number]
            failed = processes[number].exitcode not in (0, None)
            if failed or (outcomes[number] or ("",))[0] == "error":
                failed_at = min(failed_at, time.monotonic())
            if (outcomes[number] or ("",))[0] == "stopped":
                failed_at = min(failed_at, time.monotonic() + STOPPING - GRACE)
        asked_at = min(asked_at, time.monotonic()) if asked else asked_at
        beginning = not words and time.monotonic() > asked_at + BEGINNING
        patience = WRITING if any(processes[number].is_alive() for number in writing) else GRACE
        if beginning or time.monotonic() > failed_at + patience:
            for number, process in enumerate(processes):
                if process.is_alive():  # it stalls; that is another's find, and no death of its own
                    outcomes[number] = ("stalled", None)
                    process.kill()
    for number, end in enumerate(ends):
        with suppress(EOFError):
            while outcomes[number] is None and end.poll():
                said = end.recv()
                outcomes[number] = None if said[0] in _WORDS else said
    return outcomes


def _own_errors(outcomes: list[_Outcome | None]) -> list[Any]:
    """What went wrong, but for those that only lost the others."""
    errors = [outcome[1] for outcome in outcomes if outcome and outcome[0] == "error"]
    return [error for error in errors if "lost contact" not in error[0]]


def _judged(outcomes: list[_Outcome | None], codes: list[int | None], verb: str = "pretrain") -> Any:
    """The first process's result, or what went wrong first: a death explains what the others then saw."""
    dead = [number for number, outcome in enumerate(outcomes) if outcome is None and codes[number] != 0]
    errors = [content for outcome in outcomes if outcome for kind, content in [outcome] if kind == "error"]
    if own := _own_errors(outcomes):
        raise UserError(*own[0])
    if dead:
        code = codes[dead[0]] or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        cure = f"sslkit {verb} --resume RUN goes on from the newest checkpoint"
        raise UserError(f"process {dead[0]} of {len(codes)} {how}", cure, code=1)
    if errors:
        raise UserError(*errors[0])
    for outcome in outcomes:
        if outcome and outcome[0] == "stopped":
            raise Interrupted(outcome[1])
    assert outcomes[0] is not None
    return outcomes[0][1]
