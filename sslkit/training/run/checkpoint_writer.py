"""Saving beside the training: what a failed save means, and checkpoints written in the background."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslkit.core.console import Console
from sslkit.methods.base import Clock
from sslkit.training.run import checkpoint
from sslkit.training.run.snapshot import Room, Snapshot, copied, snapshot

_PATIENCE = 3
"""Saves that may fail one after the other before the run ends."""


def save_due(every: tuple[float, str], saved: float, clock: Clock) -> bool:
    """Whether it is time to save after this step.

    Args:
        every: number and unit, as `training.loop.intervals` reads them.
        saved: when that was done last, by the monotonic clock.
    """
    number, unit = every
    if unit == "seconds":
        return time.monotonic() - saved >= number
    return clock.every(max(1, round(number * clock.steps_per_epoch if unit == "epochs" else number)))


class Writer:
    """Commits the checkpoints of one run.

    In the background a save costs the training only the beginning of a copy to the CPU, always into the same
    memory; one thread waits for it and writes, and the next save waits for the thread. That is for GPUs: on
    the CPU the thread would take cores and memory from the training itself, so there a save is done when
    `save` returns.
    """

    def __init__(self, folder: Path, background: bool, console: Console) -> None:
        self._folder, self._background, self._console = folder, background, console
        self._room = Room()
        self._thread: threading.Thread | None = None
        self._problem: BaseException | None = None
        self.failures = 0

    def save(
        self, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Begin to save; raises what `settle` raises, on the CPU of this save, else of the one before."""
        self.settle()
        content = snapshot(method, optimizer)
        if self._background:
            content = copied(content, self._room)
            self._thread = threading.Thread(target=self._commit, args=(step, content, state), daemon=True)
            self._thread.start()
        else:
            self._commit(step, content, state)
            self._settled()

    def settle(self, wait: bool = True) -> None:
        """Learn how the save in flight went; without `wait`, only if it is over.

        Raises:
            SaveFailed: for the third time in a row; before that it is a warning.
            UserError: a weight is not finite.
        """
        if self._thread is None or (self._thread.is_alive() and not wait):
            return
        self._thread.join()
        self._settled()

    def _commit(self, step: int, content: Snapshot, state: dict[str, Any]) -> None:
        try:
            checkpoint.commit(self._folder, step, content, state)
        except BaseException as problem:
            self._problem = problem

    def _settled(self) -> None:
        problem, self._problem, self._thread = self._problem, None, None
        if problem is None:
            self.failures = 0
        elif not isinstance(problem, checkpoint.SaveFailed):
            raise problem
        else:
            self.failures += 1
            if self.failures >= _PATIENCE:
                raise problem
            self._console.warn(f"{problem.message}; training goes on", problem.hint)
