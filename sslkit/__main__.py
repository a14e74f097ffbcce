"""`python -m sslkit` and the console script."""

from __future__ import annotations

import sys
from signal import SIG_IGN, SIGINT, default_int_handler, getsignal, signal

INTERRUPTED = 130


def main() -> None:
    """The command line; Ctrl-C is one line and code 130 at any moment."""
    if getsignal(SIGINT) is default_int_handler:  # else somebody has decided, such as nohup
        signal(SIGINT, _interrupt)
    try:
        from sslkit.cli.app import main as run

        run()
    except KeyboardInterrupt:
        _leave(announced=False)
    except SystemExit as ended:
        untold = getattr(ended, "untold", False)
        if ended.code == INTERRUPTED:
            _leave(announced=not untold)
        if untold:
            _tell()
        raise


def _interrupt(number: int, frame: object) -> None:
    """As Python does, but inside an import leave at once.

    There the exception may be swallowed: torch goes on with half of numpy, and the run fails at its end.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):  # type: ignore[attr-defined]
            _leave(announced=False)
        frame = frame.f_back  # type: ignore[attr-defined]
    raise KeyboardInterrupt


def _leave(announced: bool) -> None:
    """End the process, without the interpreter's own end.

    That dies of SIGINT, not with 130, when the exception has passed a text that was executed, as dataclasses
    do.
    """
    import atexit
    import os
    from contextlib import suppress

    signal(SIGINT, SIG_IGN)
    if not announced:
        _tell()
    with suppress(BaseException):  # nothing may keep it from ending
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(INTERRUPTED)


def _tell() -> None:
    if sys.stderr:
        try:
            print("error: interrupted", file=sys.stderr)
        except (OSError, ValueError):  # nobody listens
            return


if __name__ == "__main__":
    main()
