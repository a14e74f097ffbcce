"""Names that are still free: nothing existing is ever overwritten."""

from __future__ import annotations

from pathlib import Path


def next_folder(parent: Path, stem: str) -> Path:
    """parent/stem-N with the first number, from 1, that is free."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"
