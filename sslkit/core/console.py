"""What people read while sslkit works: text and progress on stderr, results on stdout.

A live line appears only on an interactive terminal; under a pipe, nohup or CI there are plain lines and no
control codes. Paths and JSON never pass through wrapping or markup.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from sslkit.core.distributed import environment

PLAIN_INTERVAL = 15.0
"""Seconds between two plain progress lines where there is no terminal."""


class Bar:
    """One task's progress: `advance` as work is done, `note` for figures beside the bar."""

    def __init__(self, console: Console, label: str, total: int, done: int = 0, each: bool = False) -> None:
        self.console, self.label, self.total, self._each = console, label, total, each
        self.done = self._resumed = done
        self._began = self._shown = time.monotonic()
        self._live: Any = None

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        line = f"{self.label} {self.done}/{self.total}, {self._left()} left  {note}".rstrip()
        if self._live is not None:
            self._live.update(0, completed=self.done, note=note)
            if self._each:
                self.console._copy(line)
        elif self._each or time.monotonic() - self._shown > PLAIN_INTERVAL:
            self._shown = time.monotonic()
            self.console.say(line)

    def _left(self) -> str:
        """Time left at the rate so far, as h:mm:ss."""
        rate = (time.monotonic() - self._began) / max(self.done - self._resumed, 1)
        return str(timedelta(seconds=round(rate * (self.total - self.done))))


class Console:
    """Where a command's output goes.

    Args:
        quiet: nothing on stderr but warnings and errors; results still on stdout.
        json: results and events as JSON on stdout instead of text.
        log: a file that gets a copy of what people read.

    With several processes that work together only the first one prints.
    """

    def __init__(self, quiet: bool = False, json: bool = False, log: Path | None = None) -> None:
        self.quiet, self.json = quiet, json
        self._logs = [log] if log else []
        terminal = bool(sys.stderr) and sys.stderr.isatty()  # None: closed by `2>&-`
        self.interactive = terminal and not quiet and environment.number() == 0
        self._progress: Any = None

    @property
    def log(self) -> Path | None:
        """The file that what people read is copied to."""
        return self._logs[-1] if self._logs else None

    @property
    def choice(self) -> tuple[bool, bool]:
        """The arguments that make an equal one in another process."""
        return self.quiet, self.json

    def say(self, text: str = "") -> None:
        """A line for people."""
        text = "\n".join(map(visible, text.split("\n")))
        self._copy(text)
        if not self.quiet:
            self._write(sys.stderr, text)

    def warn(self, text: str, cure: str = "") -> None:
        """One line about something that needs attention, with the cure; shown even when quiet."""
        line = visible(f"warning: {text}" + (f" ({cure})" if cure else ""))
        self._copy(line)
        self._write(sys.stderr, line)

    def facts(self, rows: Mapping[str, str]) -> None:
        """Names and values, aligned."""
        width = max((len(name) for name in rows), default=0)
        for name, value in rows.items():
            self.say(f"  {name:<{width}}  {value}")

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        """Columns for people: the first left-aligned, the others right-aligned."""
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        for row in [header, *rows]:
            cells = [f"{row[0]:<{widths[0]}}"] + [
                f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)
            ]
            self.say("  " + "  ".join(cells).rstrip())

    def result(self, text: str, document: Mapping[str, Any] | None = None) -> None:
        """The command's result → stdout: `text`, or with --json the `document`."""
        self._write(sys.stdout, as_json(document) if self.json and document is not None else text)

    def event(self, document: Mapping[str, Any]) -> None:
        """One JSON line while training → stdout, only with --json."""
        if self.json:
            self._write(sys.stdout, as_json(document))

    @contextmanager
    def copied_to(self, log: Path) -> Iterator[None]:
        """Inside, what people read is also written to a file."""
        self._logs.append(log)
        try:
            yield
        finally:
            if log in self._logs:  # runs in other threads may have begun or ended meanwhile
                self._logs.remove(log)

    @contextmanager
    def bar(self, label: str, total: int, done: int = 0, each: bool = False) -> Iterator[Bar]:
        """Progress of one task; a Rich bar on a terminal, plain lines elsewhere.

        With `each`, every `advance` is a line of the log (training); without it, one now and then.
        """
        bar = Bar(self, label, total, done, each)
        if not self.interactive:
            yield bar
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TimeRemainingColumn(compact=True),
            TextColumn(
                "{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            ),
        )
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as live:
            live.add_task(label, total=total, completed=done, note="")
            bar._live = self._progress = live
            try:
                yield bar
            finally:
                self._progress = None

    def _write(self, stream: TextIO, text: str) -> None:
        """A closed stream, a closed pipe or a full disk behind it never stops the work."""
        if not stream or environment.number() > 0:
            return
        try:
            if stream is sys.stderr and self._progress is not None:
                self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(printable(text, stream), file=stream, flush=True)
        except (OSError, ValueError):  # the latter: closed by the program itself
            pass

    def _copy(self, text: str) -> None:
        if self.log is None or environment.number() > 0:
            return
        try:
            with self.log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text + "\n")
        except OSError:
            self._logs.clear()


def command(*words: str | Path) -> str:
    """A command to print, quoted so that a shell reads these words: spaces, quotes, stray bytes."""
    return " ".join(map(_quoted, words))


def _quoted(word: str | Path) -> str:
    """For a POSIX shell; what can't be shown is written as bash and zsh read it, e.g. $'two\\x0alines'."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    shown = (
        c if c.isprintable() and c not in "'\\" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c))
        for c in text
    )
    return f"$'{''.join(shown)}'"


def nearby(path: str) -> str:
    """A path as people would type it here: relative where it lies below the working directory."""
    below = Path(path)
    return str(below.relative_to(Path.cwd())) if below.is_relative_to(Path.cwd()) else path


def visible(text: str) -> str:
    """One line of which a terminal or a table shows everything and obeys nothing.

    Line ends, tabs, escape sequences, marks that turn the direction of writing and the stray bytes of a file
    name become Python's escapes, e.g. "\\n" and "\\x1b".
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def without_strays(text: str) -> str:
    """The text with bytes of a file name that are no UTF-8 as U+FFFD, the replacement character."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def readable(text: str) -> str:
    """Text for a picture: stray bytes and control characters as U+FFFD, on one line."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def named(name: str) -> str:
    """A class's name in a sentence: in quotes where it could be taken for a number, or for none at all."""
    shown = without_strays(name)
    plain = shown.isprintable() and shown == shown.strip() and any(map(str.isalpha, shown))
    return shown if plain else repr(shown)


def as_json(document: Any, **layout: Any) -> str:
    """JSON in ASCII; stray bytes of file names, which other readers of JSON refuse, as U+FFFD."""
    text = json.dumps(document, default=str, **layout)
    if "\\ud" not in text:  # neither a stray byte nor half of a letter beyond 16 bits
        return text
    whole = json.dumps(document, default=str, ensure_ascii=False)
    return json.dumps(json.loads(without_strays(whole)), **layout)


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 image", "1,200 images"; `many` where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def printable(text: str, stream: TextIO) -> str:
    """The text with characters that the stream can't encode, and a file name's stray bytes, as escapes."""
    encoding = stream.encoding or "utf-8"  # io.StringIO has none
    return text.encode(encoding, "backslashreplace").decode(encoding)


SILENT = Console(quiet=True)
"""Prints nothing; the default of calls from Python."""
