"""Files that appear whole: written beside their place, then put there by one rename."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sslkit.core.console import as_json


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A hidden name in the folder of `path`, with its ending, to write to; removed afterwards."""
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield unfinished
    finally:
        with suppress(OSError):  # a folder that can't be written holds none
            unfinished.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name in the folder of `path`, with its ending, to write to; then it becomes `path`.

    Where the block or the rename fails, `path` is as it was and nothing is left beside it.
    """
    with beside(path) as unfinished:
        yield unfinished
        unfinished.replace(path)


def read_text(path: Path) -> str:
    """A text that people have edited: UTF-8, or what editors mark as UTF-16, without that mark.

    Raises:
        OSError, UnicodeDecodeError: no such file, or another encoding.
    """
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8-sig")


def text_of(path: Path) -> str:
    """A small text file, whatever is in it; empty where there is none, or it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A document of numbers, texts and lists; a path becomes its text. Raises OSError."""
    with replacing(path) as unfinished:
        unfinished.write_text(as_json(document, indent=1) + "\n", encoding="utf-8")


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sort_metadata_(path: Path) -> None:
    """A safetensors file's metadata in order, in place: the library's order is random, other bytes each time.

    A file is 8 bytes that say how long the header is, the header (JSON, spaces at its end), and the tensors.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length)
        if len(text) != length:  # another way to write the same; the file is whole as it is
            return
        file.seek(8)
        file.write(text)
