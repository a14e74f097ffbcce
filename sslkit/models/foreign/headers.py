"""A safetensors file's header, looked at before anything believes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslkit.core.errors import UserError

LARGEST_HEADER = 4 << 20
"""Bytes, enough for thirty thousand tensors. The library itself takes 100 MB."""


def check_header(file: Path) -> None:
    """Refuse a header that is too long for the file or for any model, is no JSON, or names a tensor twice.

    Offsets, shapes and types are checked by the safetensors library when it opens the file.

    Raises:
        UserError: one of these.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(LARGEST_HEADER, file.stat().st_size - 8):
                raise ValueError(f"its header claims {length:,} bytes")
            json.loads(opened.read(length), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as problem:
        reason = (
            f"its header is no JSON ({problem})" if isinstance(problem, json.JSONDecodeError) else problem
        )
        raise UserError(f"{file} can't be read: {reason}", "the file is damaged or no safetensors") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that comes twice means two readers may see two different files."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found
