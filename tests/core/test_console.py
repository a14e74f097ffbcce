"""Who reads what: people on stderr, programs on stdout, and no control codes where there is no terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sslkit.core import console as module
from sslkit.core.console import SILENT, Console, command, counted, printable


def test_text_for_people_and_results_take_different_streams(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("hello")
    console.warn("hot", "open a window")
    console.result("runs/a", {"run": "runs/a"})
    console.event({"step": 1})
    out, err = capsys.readouterr()
    assert out == "runs/a\n"
    assert err == "hello\nwarning: hot (open a window)\n"


def test_quiet_keeps_warnings_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.say("hello")
    console.facts({"a": "b"})
    console.warn("hot")
    console.result("runs/a")
    out, err = capsys.readouterr()
    assert (out, err) == ("runs/a\n", "warning: hot\n")


def test_json_is_one_document_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    console.event({"step": 1, "loss": 0.5})
    console.result("text", {"run": Path("runs/a"), "name": "fünf\n"})
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert documents == [{"step": 1, "loss": 0.5}, {"run": "runs/a", "name": "fünf\n"}]


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.facts({"a": "1", "long": "2"})
    console.table(["name", "top-1"], [["x", "9.25"], ["longer", "10.5"]])
    assert capsys.readouterr().err.splitlines() == [
        "  a     1",
        "  long  2",
        "  name    top-1",
        "  x        9.25",
        "  longer   10.5",
    ]


def test_progress_without_a_terminal_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLAIN_INTERVAL", -1.0)
    with Console().bar("training", 10) as bar:
        bar.advance(3, note="loss 0.5")
        bar.advance(4)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "training 3/10, 0:00:00 left  loss 0.5\ntraining 7/10, 0:00:00 left\n"


def test_time_left_follows_the_rate_of_this_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run resumed at 60 of 100 that does 10 in 20 seconds has 30 left: 60 seconds."""
    now = iter([0.0, 20.0, 20.0, 20.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    with Console().bar("training", 100, done=60) as bar:
        bar.advance(10)
    assert capsys.readouterr().err == "training 70/100, 0:01:00 left\n"


def test_plain_progress_is_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().bar("training", 10) as bar:
        for _ in range(10):
            bar.advance()
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    console = Console()
    with console.bar("training", 10) as bar:
        bar.advance(3, note="[loss] 0.5")
        console.say("a line [in] between " + "x" * 200)
    assert "\x1b[" in stream.getvalue()
    assert "[loss] 0.5" in stream.getvalue()  # brackets are no markup
    assert "a line [in] between " + "x" * 200 in stream.getvalue()  # and long lines are not folded
    assert not Console(quiet=True).interactive


def test_lines_are_copied_while_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    with console.copied_to(tmp_path / "log.txt"):
        console.say("inside")
        console.warn("hot")
    console.say("outside")
    assert (tmp_path / "log.txt").read_text() == "inside\nwarning: hot\n"
    assert capsys.readouterr().err == "warning: hot\n"


def test_a_log_that_can_t_be_written_stops_nothing(tmp_path: Path) -> None:
    with SILENT.copied_to(tmp_path / "missing" / "log.txt"):
        SILENT.say("lost")
        SILENT.say("lost too")
    assert SILENT.log is None


def test_any_text_goes_through_any_stream() -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert printable("σ caf\udce9", ascii_only) == "\\u03c3 caf\\udce9"
    with contextlib.redirect_stdout(io.StringIO()) as stream:  # has no encoding at all
        Console().result("σ")
    assert stream.getvalue() == "σ\n"


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_left_stops_nothing() -> None:
    with contextlib.redirect_stdout(Closed()):
        Console().result("runs/a")


def test_one_is_not_many() -> None:
    assert [counted(number, "image") for number in (0, 1, 2, 1200)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,200 images",
    ]
    assert [counted(number, "class", "classes") for number in (1, 3)] == ["1 class", "3 classes"]


@pytest.mark.parametrize("name", ["plain", "my photos", "it's", "größe", "$HOME", "two\nlines", "a\tb\\'c"])
def test_a_printed_command_is_read_back_by_a_shell(name: str) -> None:
    line = command("printf", "%s", Path(name))
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert os.fsdecode(done.stdout) == name
