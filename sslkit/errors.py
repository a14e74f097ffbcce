"""The one exception a user may see, how it finds the nearest name, and how others fit into its line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user typed, or gave, can't work. Raised before any work starts.

    The command line prints it as two lines, `error: message` and `hint: hint`, and exits with `code`
    (2: bad arguments, configuration or data; 1: the work itself failed).
    """

    def __init__(self, message: str, hint: str = "", code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


def first_line(problem: BaseException) -> str:
    """What any exception says, in one line; the name of its class where it says nothing."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known one, else the known ones listed (at most twelve)."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"known: {shown}" if known else ""
