"""Files that appear whole: written beside their place, then put there by one rename."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name in the folder of `path`, with its ending, to be written; then it becomes `path`.

    Where the block or the rename fails, `path` is as it was and nothing is left beside it.
    """
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A document of numbers, texts and lists; a path becomes its text. Raises OSError."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
