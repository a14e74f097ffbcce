"""The one exception a user may see, its hints with the nearest name, and others in one line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path


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
    """An exception's message in one line; the name of its class where it has none."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


def nearest(name: str, names: Iterable[str], most: int = 12) -> str:
    """A hint for an unknown name: the closest known one, else a list of at most `most` known ones."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(known[:most]) + (", …" if len(known) > most else "")
    return f"known: {shown}" if known else ""


def nearest_path(path: str | os.PathLike[str], otherwise: str = "") -> str:
    """A hint for a path that does not exist: the most similar one that does, else `otherwise`.

    One part of it may be misspelt: the first one that is missing. Only the folder above that one is listed;
    what is proposed exists.
    """
    typed = Path(path)
    if typed.exists():
        return otherwise
    above = next((folder for folder in typed.parents if os.path.isdir(folder)), None)
    if above is None or not os.access(above, os.R_OK):
        return otherwise
    missing, *rest = typed.relative_to(above).parts
    beside = [name for name in os.listdir(above) if not name.startswith(".")]
    # Of a folder with a million images the first will do: comparing names takes longer than listing them.
    close = difflib.get_close_matches(missing, beside[:10_000], n=3, cutoff=0.6)
    found = (above.joinpath(name, *rest) for name in close)
    return next((f"did you mean {str(there)!r}?" for there in found if os.path.exists(there)), otherwise)
