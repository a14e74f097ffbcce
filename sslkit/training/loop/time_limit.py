"""`--max-time`: a schedule that ends on the clock."""

from __future__ import annotations

import time

MEMORY = 200
"""Steps over which the pace is a mean."""
CERTAIN = 2
"""Steps before the end from which the plan no longer changes."""


class Deadline:
    """Plans how many steps a run will have, from how long its steps take.

    Anew after every step: a plan from a speed measured once would miss the clock on a machine that is shared.

    Args:
        seconds: for the whole run.
        used: seconds that earlier parts of a resumed run have taken.
        spare: share of the time kept for the last save.
    """

    def __init__(self, seconds: float, used: float = 0.0, spare: float = 0.01) -> None:
        self._end = seconds * (1 - spare)
        self._used = used
        self._began = self._last = time.monotonic()
        self._pace = 0.0
        self._steps = 0
        self._final: int | None = None

    @property
    def used(self) -> float:
        """Seconds of the run so far, in this process and in those before."""
        return self._used + time.monotonic() - self._began

    def planned(self, done: int) -> int:
        """Steps of the whole run, now that `done` are finished; at least those.

        The pace is a mean over all steps at first and then an exponential one, so that a pause for a save
        or a slower machine moves the end by little at a time. Two steps before the end the plan stands, so
        that the last step knows that it is the last.
        """
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._steps += 1
        self._pace += (seconds - self._pace) / min(self._steps, MEMORY)
        left = max(0, int((self._end - self.used) / max(self._pace, 1e-9)))
        if self._final is None and left <= CERTAIN:
            self._final = done + left
        return done + left if self._final is None else max(done, self._final)
