"""Lists and tables of images as people's programs write them: UTF-8 or UTF-16, commas, semicolons or tabs."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal

from sslkit.core.errors import UserError

TABLES = (".csv", ".tsv")
SEPARATORS = (",", ";", "\t", "|")
"""Of a table's columns; the first one that makes a column `path` of the header."""

_MARKS = (  # UTF-32 before UTF-16, whose mark it begins with
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_COLUMNS = ("path", "label", "split")

Rows = list[dict[str, str]]


def is_table(source: str) -> bool:
    return source.lower().endswith(TABLES)


def read_table(table: str) -> tuple[Rows, str]:
    """Rows of a .csv or .tsv file with a header that has `path`, and what people should know of their labels.

    `path` is made absolute, relative to the table; labels that differ only in how they are written are one.

    Raises:
        UserError: not readable as a table, no `path` column, a row without path, files that are missing.
    """
    rows = _parsed(table, _text(table))
    if not rows:
        raise UserError(f"{table}: no rows", hint="a .csv needs a header with `path`, and one row per image")
    if "path" not in rows[0]:
        raise UserError(f"{table}: no column `path`", hint="columns found: " + ", ".join(rows[0]))
    paths = _existing(table, [row["path"] for row in rows])
    names, note = one_spelling(row["label"] for row in rows if "label" in row)
    labels = ({"label": names[row["label"]]} if "label" in row else {} for row in rows)
    return [
        {**row, "path": path, **label} for row, path, label in zip(rows, paths, labels, strict=True)
    ], note


def lines_of(listing: str) -> list[str]:
    """The files that a list names, one a line, absolute.

    Raises:
        UserError: not readable as text, no lines, files that are missing.
    """
    named = [line for line in re.split(r"\r\n|\r|\n", _text(listing)) if line.strip()]
    if not named:
        raise UserError(f"{listing}: no images found", hint="a .txt list holds one path a line")
    return _existing(listing, named)


def one_spelling(labels: Iterable[str]) -> tuple[dict[str, str], str]:
    """Each label → the name of its class, and a sentence where several are one; "" where none are.

    Labels are one class where they differ only in spaces, in the form of a number ("1", "1.0", "01") or in
    how an accent is written (Unicode's normal forms). Its name is the shortest of them.
    """
    alike: dict[object, set[str]] = defaultdict(set)
    for label in dict.fromkeys(labels):
        alike[_meaning(label)].add(label)
    names = {label: min(map(str.strip, group), key=_shortest) for group in alike.values() for label in group}
    several = [group for group in alike.values() if len(group) > 1]
    if not several:
        return names, ""
    first = sorted(several[0], key=_shortest)
    more = f"; so are {len(several) - 1} more" if len(several) > 1 else ""
    written = ", ".join(map(repr, first))
    return names, f"labels that differ only in spaces or the form of a number are one class: {written}{more}"


def _shortest(name: str) -> tuple[int, str]:
    return len(name), name


def _meaning(label: str) -> object:
    text = unicodedata.normalize("NFC", " ".join(label.split()))
    return Decimal(text) if _NUMBER.fullmatch(text) else text


def _text(file: str) -> str:
    """What a text file holds; bytes that are not UTF-8 survive, as they may be those of file names.

    Raises:
        UserError: it can't be read, or is no text.
    """
    try:
        with open(file, "rb") as opened:
            content = opened.read()
    except OSError as problem:
        raise UserError(f"{file}: can't be read: {problem.strerror}", "chmod u+r, or ask its owner") from None
    mark, encoding = next(((m, e) for m, e in _MARKS if content.startswith(m)), (b"", ""))
    if encoding == "utf-8" or (not mark and b"\0" not in content):
        return content[len(mark) :].decode("utf-8", "surrogateescape")
    if not encoding:  # every other byte of Latin letters in UTF-16 is zero
        beginning = content[:4096]
        odd, even = beginning[1::2].count(0), beginning[::2].count(0)
        sure = max(odd, even) > len(beginning) // 8
        encoding = "ascii" if not sure else "utf-16-le" if odd > even else "utf-16-be"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{file}: neither UTF-8 nor UTF-16, no text", "save it as UTF-8")
    return text.removeprefix("\ufeff")


def _parsed(table: str, text: str) -> Rows:
    """Rows by column; `path`, `label` and `split` are known in any case of letters."""
    lines = io.StringIO(text, newline="")
    declared = re.fullmatch(r"sep=(.)\s*", lines.readline())  # a spreadsheet's own first line
    if not declared:
        lines.seek(0)
    start = lines.tell()
    header = next((line for line in lines if line.strip()), "")
    lines.seek(start)
    separator = declared[1] if declared else _separator(header)
    spaced = all(cell.startswith(" ") for cell in header.split(separator)[1:])  # "path, label"
    try:
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=spaced)
        cells = [row for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(
            f"{table}: can't be read as a table: {error}", "a .csv has one row per image, separated by commas"
        ) from error
    names = [_column(cell) for cell in cells[0]] if cells else []
    return [
        {name: value for name, value in zip(names, row + [""] * len(names), strict=False) if name}
        for row in cells[1:]
    ]


def _separator(header: str) -> str:
    found = {
        mark: [_column(cell) for cell in next(csv.reader([header], delimiter=mark), [])]
        for mark in SEPARATORS
    }
    with_path = (mark for mark, names in found.items() if "path" in names)
    return next(with_path, max(found, key=lambda mark: len(found[mark])))


def _column(cell: str) -> str:
    known = cell.strip().casefold()
    return known if known in _COLUMNS else cell.strip()


def _existing(listing: str, names: Sequence[str]) -> list[str]:
    """`names` made absolute, relative to the list they stand in; UserError unless all are files."""
    folder = os.path.dirname(os.path.abspath(listing))
    paths = [_place(folder, name) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if not os.path.isfile(path)]
    if missing:
        kind = "a .csv is read as a table" if is_table(listing) else "a .txt is read as a list"
        raise UserError(
            f"{listing}: {len(missing)} of {len(names)} files are missing, the first is {missing[0]!r}",
            hint=f"{kind} of images; its paths are relative to {folder}",
        )
    return paths


def _place(folder: str, name: str) -> str:
    """Where a named file is; spaces around the name are dropped where there is no such file."""
    path = os.path.normpath(os.path.join(folder, name)) if name else ""
    if name == name.strip() or os.path.isfile(path):
        return path
    return os.path.normpath(os.path.join(folder, name.strip())) if name.strip() else ""
