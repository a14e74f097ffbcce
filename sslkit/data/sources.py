"""Where images come from. One rule for DATA everywhere: a folder, a .txt list, a .csv table, `fractal:N`,
or several of these. Files are listed once, sorted, and never opened here.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from sslkit import keyed
from sslkit.data import fractal
from sslkit.data.decode import image_size, read_image
from sslkit.errors import UserError

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".mpo",
)  # fmt: skip
"""File endings a folder is searched for, in any case of letters."""


@dataclass(frozen=True)
class ImageSet:
    """A fixed, sorted list of images; an image's position in it is its identity (`index`).

    Attributes:
        paths: absolute file names, or names of generated images (`fractal:system/variant`).
        name: what the user typed, for messages.
        labels: one class number per image, or None.
        classes: names of the classes, in the order of their numbers.
    """

    paths: tuple[str, ...]
    name: str
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """The image, RGB and upright. Raises UnreadableImage."""
        path = self.paths[index]
        return fractal.draw(path) if fractal.is_name(path) else read_image(path)

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in pixels, without decoding. Raises UnreadableImage."""
        path = self.paths[index]
        return (fractal.SIDE, fractal.SIDE) if fractal.is_name(path) else image_size(path)

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """The images at `indices`, in that order, with the same classes."""
        chosen = [int(index) for index in indices]
        labels = None if self.labels is None else tuple(self.labels[index] for index in chosen)
        return replace(self, paths=tuple(self.paths[index] for index in chosen), labels=labels)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over names relative to the common folder, labels, and sizes in bytes.

        It survives moving the folder, and changes when a file is added, removed, renamed or resized.
        """
        root = _common_folder(self.paths)
        digest = hashlib.sha256()
        for position, path in enumerate(self.paths):
            label = "" if self.labels is None else self.classes[self.labels[position]]
            digest.update(os.fsencode(f"{path.removeprefix(root)}\0{label}\0{file_bytes(path)}\n"))
        return digest.hexdigest()


def open_images(sources: Sequence[str], limit: int | None = None) -> ImageSet:
    """All images of one or several sources, without labels; a file named twice counts once.

    Args:
        sources: DATA as typed: folders (recursive), .txt lists (one path a line, relative to the list),
            .csv tables (header with `path`), `fractal:N`.
        limit: keep at most so many, drawn over the whole set and always the same ones.

    Raises:
        UserError: nothing there, no images, a list that names missing files, a limit under 1.
    """
    if not sources:
        raise UserError("no images given", hint="name a folder, a .txt or .csv list, or fractal:1000")
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit}: at least 1 image expected")
    paths = sorted({path for source in sources for path in _paths_of(source)}, key=os.fsencode)
    if limit is not None and limit < len(paths):
        # The first `limit` names would be a few folders, that is, a few classes.
        paths = [paths[i] for i in sorted(keyed.permutation(len(paths), 0, 0, 0, limit))]
    return ImageSet(paths=tuple(paths), name=", ".join(sources))


def images_in(folder: str) -> list[str]:
    """Absolute names of the image files under `folder`, sorted by their bytes whatever the locale.

    Hidden files and folders are left out (`._*` of macOS too), links to folders are followed, each real
    folder once, and folders that may not be entered are passed over. May be empty.
    """
    root = os.path.abspath(folder)
    return sorted(_scan(root), key=os.fsencode) if os.path.isdir(root) else []


def none_found(source: str) -> UserError:
    """The error for a folder without images."""
    return UserError(
        f"{source}: no images found", hint="looked in all folders for files ending in " + " ".join(ENDINGS)
    )


def rows_of(table: str) -> list[dict[str, str]]:
    """Rows of a .csv file with a header that has `path`; `path` is made absolute, relative to the table.

    Raises:
        UserError: not readable as a table, no `path` column, a row without path, files that are missing.
    """
    try:
        # Bytes that are not UTF-8 survive in names; a byte-order mark from spreadsheets does not.
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, csv.Error) as error:
        raise UserError(f"{table}: can't be read as a table: {error}") from error
    if not rows:
        raise UserError(f"{table}: no rows", hint="a .csv needs a header with `path`, and one row per image")
    if "path" not in rows[0]:
        raise UserError(f"{table}: no column `path`", hint="columns found: " + ", ".join(rows[0]))
    paths = _existing(table, [row["path"] for row in rows])
    return [{**row, "path": path} for row, path in zip(rows, paths, strict=True)]


def _paths_of(source: str) -> list[str]:
    if fractal.is_name(source):
        return fractal.names(fractal.count(source))
    if not os.path.exists(source):
        raise UserError(f"{source}: no such file or folder", "fractal:2000 stands for generated images")
    if os.path.isdir(source):
        if not os.access(source, os.R_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UserError(f"{source}: the folder may not be read", "chmod u+rx, or ask its owner")
        found = images_in(source)
        if not found:
            raise none_found(source)
        return found
    ending = os.path.splitext(source)[1].lower()
    if ending == ".csv":
        return [row["path"] for row in rows_of(source)]
    if ending == ".txt":
        return _lines_of(source)
    raise UserError(
        f"{source}: not a folder, a .txt list or a .csv table", hint="give the folder that holds the images"
    )


def _lines_of(listing: str) -> list[str]:
    try:
        with open(listing, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [line.rstrip("\n") for line in file]
    except OSError as error:
        raise UserError(f"{listing}: can't be read: {error.strerror}") from error
    named = [line for line in lines if line.strip()]
    if not named:
        raise UserError(f"{listing}: no images found", hint="a .txt list holds one path a line")
    return _existing(listing, named)


def _existing(listing: str, names: Sequence[str]) -> list[str]:
    """`names` made absolute, relative to the list they stand in; UserError unless all are files."""
    folder = os.path.dirname(os.path.abspath(listing))
    paths = [os.path.normpath(os.path.join(folder, name)) if name else "" for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{listing}: {len(missing)} of {len(names)} files are missing, the first is {missing[0]!r}",
            hint=f"paths are relative to {folder}",
        )
    return paths


def _scan(root: str) -> Iterator[str]:
    """Image files under `root`. A stack instead of recursion: folders may be deeper than Python's limit."""
    pending, seen = [root], set()
    while pending:
        folder = pending.pop()
        try:
            identity = os.stat(folder)
            if (identity.st_dev, identity.st_ino) in seen:  # a link back, or a second way to the same folder
                continue
            with os.scandir(folder) as entries:
                visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            continue
        seen.add((identity.st_dev, identity.st_ino))
        pending += [entry.path for entry in reversed(visible) if _is(os.DirEntry.is_dir, entry)]
        named = (entry for entry in visible if entry.name.lower().endswith(ENDINGS))
        yield from (entry.path for entry in named if _is(os.DirEntry.is_file, entry))


def _is(kind: Callable[[os.DirEntry[str]], bool], entry: os.DirEntry[str]) -> bool:
    """False for a link that leads to itself, or to where nobody may look, which raise."""
    try:
        return kind(entry)
    except OSError:
        return False


def _common_folder(paths: Sequence[str]) -> str:
    folders = {os.path.dirname(path) for path in paths if not fractal.is_name(path)}
    try:
        return os.path.join(os.path.commonpath(folders), "") if folders else ""
    except ValueError:  # different drives on Windows
        return ""


def file_bytes(path: str) -> int:
    """Size of a file; 0 for a generated image, -1 for a file that is gone."""
    if fractal.is_name(path):
        return 0
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
