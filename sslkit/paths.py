"""Names that are still free: nothing existing is ever overwritten."""

from __future__ import annotations

from pathlib import Path

from sslkit.errors import UserError


def next_folder(parent: Path, stem: str) -> Path:
    """parent/stem-N with the first number, from 1, that is free."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


def make_folder(path: Path) -> Path:
    """Make a folder that does not exist yet, parents included.

    Raises:
        UserError: it exists, or can't be made.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{path} exists", "choose another folder; nothing is overwritten") from None
    except OSError as problem:
        raise UserError(f"can't create {path}: {problem.strerror}", "choose another folder") from None
    return path
