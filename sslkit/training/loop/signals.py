"""What the outside world asks of a running training: stop after saving, or save and go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(SystemExit):
    """A run that was asked to stop, and saved; carries the exit code (130 or 143)."""

    untold: bool = False
    """Nobody has said so yet: there was nothing to save."""


class Requests:
    """Set by signals, read between two steps."""

    stop: int = 0
    """Number of the SIGINT or SIGTERM that came; 0: none."""
    save: bool = False
    """SIGUSR1 came; whoever saves sets it back."""


@contextmanager
def handle_signals() -> Iterator[Requests]:
    """SIGINT and SIGTERM become a wish to stop, and a second one leaves at once; SIGUSR1 a wish to save."""
    wishes = Requests()

    def stop(number: int, frame: object) -> None:
        if wishes.stop:
            raise Interrupted(128 + number)
        wishes.stop = number

    def save(number: int, frame: object) -> None:
        wishes.save = True

    handlers: dict[int, Any] = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = save
    try:
        old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    except ValueError:  # not the main thread, e.g. inside a notebook server: signals are its business
        yield wishes
        return
    try:
        yield wishes
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
