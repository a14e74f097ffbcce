"""Names of new files and folders: nothing is overwritten, and no two commands get the same name."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from sslkit.core.console import command
from sslkit.core.errors import UserError
from sslkit.core.files import beside

_LONGEST = Path("checkpoints", "step-00000000.tmp-00000000", "optimizer.safetensors")
"""The longest name below a run's folder."""


def next_folder(parent: Path, stem: str) -> Path:
    """parent/stem-N with the first number, from 1, that is free now; `claim_folder` is what takes it."""
    return next(path for path in _numbered(parent, stem) if not os.path.lexists(path))


def claim_folder(parent: Path, stem: str) -> Path:
    """Make parent/stem-N with the first number that is free, and return it: no other command has it.

    Making a folder fails where another command was faster, so commands that start together get one each, on
    any file system.

    Raises:
        UserError: no folder can be made there.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for path in _numbered(parent, stem):
            with suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as problem:
        raise _refused(parent / f"{stem}-1", problem) from None
    raise AssertionError  # numbers have no end


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
        raise _refused(path, problem) from None
    return path


def refuse_unwritable(path: Path, option: str = "") -> None:
    """Refuse a `path`, which does not exist yet, that can't be made.

    Args:
        option: the one that names another place, where none was typed: "--out".

    Raises:
        UserError: the name is too long, or a folder above is a file, read-only or somebody else's.
    """
    cure = f"{option} names another place" if option else "choose another folder"
    try:
        (path / _LONGEST).lstat()
    except FileNotFoundError:
        pass
    except OSError as problem:
        raise UserError(f"can't create {path}: {problem.strerror}", cure) from None
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    try:  # by making one: permissions don't show a file system that is read-only
        os.rmdir(tempfile.mkdtemp(prefix=".sslkit-", dir=above))
    except OSError as problem:
        raise UserError(f"can't create {path}: {above}: {problem.strerror}", cure) from None


def check_free(path: Path) -> None:
    """Nothing if `path`, an option's new file, does not exist yet and its folder does.

    Raises:
        UserError: it exists, or lies in no folder.
    """
    if os.path.lexists(path):
        raise UserError(f"--out {path} exists", "choose another file; nothing is overwritten")
    folder = path.parent
    if not folder.is_dir():
        above = next(part for part in path.absolute().parents if part.exists())
        cure = command("mkdir", "-p", folder) if above.is_dir() else "choose another file"
        raise UserError(f"--out {path} lies in no folder", cure)


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder that exists."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def refuse_full(path: Path, needed: int, purpose: str, cure: str) -> None:
    """Refuse a `path` where fewer than `needed` bytes are free.

    Args:
        purpose: what they are for, e.g. "checkpoints".

    Raises:
        UserError: fewer are free.
    """
    absolute = path.absolute()
    there = next(place for place in (absolute, *absolute.parents) if place.exists())
    try:
        free = shutil.disk_usage(there).free
    except OSError:  # some network file systems don't say
        return
    if needed > free:
        problem = f"{path}: {needed / 1e9:,.2f} GB needed for {purpose}, {free / 1e9:,.2f} GB free"
        raise UserError(problem, cure)


def put(unfinished: Path, path: Path) -> Path:
    """Rename a finished file to `path`, or to the next free name (NAME-2, …) if that is taken; returns it.

    Raises:
        OSError: no file can be made there.
    """
    for candidate in numbered_names(path):
        try:
            os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        try:
            unfinished.replace(candidate)
        except OSError:
            candidate.unlink(missing_ok=True)
            raise
        return candidate
    raise AssertionError  # numbers have no end


def write_whole(file: Path, write: Callable[[Path], object]) -> Path:
    """Write under another name in the same folder, then take the name, or the next one that is free."""
    try:
        with beside(file) as unfinished:
            write(unfinished)
            return put(unfinished, file)
    except OSError as problem:
        raise UserError(f"{file} can't be written: {problem.strerror or problem}", code=1) from None


def _numbered(parent: Path, stem: str) -> Iterator[Path]:
    return (parent / f"{stem}-{number}" for number in itertools.count(1))


def numbered_names(path: Path) -> Iterator[Path]:
    """`path`, then NAME-2, NAME-3, … with its ending."""
    yield path
    yield from (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))


def _refused(path: Path, problem: OSError) -> UserError:
    return UserError(f"can't create {path}: {problem.strerror}", "choose another folder")
