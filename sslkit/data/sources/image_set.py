"""Where images come from. One rule for DATA everywhere: a folder, a pack, a .txt list, a .csv table,
`fractal:N`, or several of these. Files are listed once, sorted, and never opened here.
"""

from __future__ import annotations

import copy
import hashlib
import heapq
import itertools
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslkit.core import rng
from sslkit.core.console import counted
from sslkit.core.errors import UserError, nearest_path
from sslkit.core.value_range import FULL, Range
from sslkit.data.images.decode import UnreadableImage, image_size, opened, read_numbers
from sslkit.data.images.formats import ENDINGS, FORMATS
from sslkit.data.images.numbers import Numbers
from sslkit.data.images.picture import Picture
from sslkit.data.packs import reader
from sslkit.data.sources import fractal
from sslkit.data.sources.folders import refuse_no_images
from sslkit.data.sources.left_out import LeftOut
from sslkit.data.sources.listing import Listing, look_through
from sslkit.data.sources.names import Names, common_folder
from sslkit.data.sources.tables import is_table, lines_of, read_table

_NOT_FILES = (b"fractal:", b"pack:")


class KeptPictures(Protocol):
    """Pictures of a set that are decoded already."""

    def opened(self, images: ImageSet, index: int) -> AbstractContextManager[Picture]: ...


@dataclass(frozen=True)
class ImageSet:
    """A fixed, sorted list of images; an image's position in it is its identity (`index`).

    Attributes:
        paths: absolute file names, or names of generated (`fractal:system/variant`) or packed images; any
            sequence of texts becomes Names.
        name: what the user typed, for messages.
        labels: one class number per image, or None.
        classes: names of the classes, in the order of their numbers.
        left_out: what else lies in the folders that the images were found in.
        notes: what people should know of how images were found and divided, in one sentence each.
        range: which numbers are black and white in files with more than 8 bits.
        kept: where pictures come from that are decoded already; None: their files.
    """

    paths: Names
    name: str
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    left_out: LeftOut = field(default=LeftOut(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    range: Range = FULL
    kept: KeptPictures | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", Names.of(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """The image, RGB and upright. Raises UnreadableImage."""
        with self.opened(index) as picture:
            return picture.rgb()

    def opened(self, index: int) -> AbstractContextManager[Picture]:
        """The image, to be decoded inside the `with` when and as far as needed. Raises UnreadableImage."""
        return self.from_file(index) if self.kept is None else self.kept.opened(self, index)

    def keeping(self, kept: KeptPictures) -> Self:
        """The same set, of whatever class, with pictures that are kept."""
        images = copy.copy(self)
        object.__setattr__(images, "kept", kept)
        return images

    @contextmanager
    def from_file(self, index: int) -> Iterator[Picture]:
        """`opened`, whatever is kept."""
        path = self.paths[index]
        if fractal.is_name(path):
            yield Picture(fractal.draw(path))
            return
        with reader.place(path) as (file, part), opened(file, part, self.range) as picture:
            yield picture

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in pixels, without decoding. Raises UnreadableImage."""
        path = self.paths[index]
        if fractal.is_name(path):
            return fractal.SIDE, fractal.SIDE
        with reader.place(path) as (file, part):
            return image_size(file, part)

    def numbers(self, index: int) -> Numbers | None:
        """What a file with more than 8 bits holds; None for another one. Raises UnreadableImage."""
        path = self.paths[index]
        if fractal.is_name(path):
            return None
        with reader.place(path) as (file, part):
            return read_numbers(file, part)

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """The images at `indices`, in that order, with the same classes."""
        chosen = [int(index) for index in indices]
        labels = None if self.labels is None else tuple(self.labels[index] for index in chosen)
        return replace(self, paths=self.paths.take(chosen), labels=labels)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """`file_bytes` of every image, int64 [N], as they were when first asked for."""
        return np.fromiter(map(file_bytes, self.paths.as_bytes()), np.int64, len(self))

    def native_side(self, sample: int = 64) -> int:
        """Median short side, in pixels, of at most `sample` images spread evenly over the set; headers only.

        Raises:
            UserError: none of the sampled files is an image.
        """
        chosen = np.linspace(0, len(self) - 1, min(sample, len(self))).round().astype(int)
        sides, reason = [], ""
        for index in chosen:
            try:
                sides.append(min(self.size(int(index))))
            except UnreadableImage as error:
                reason = str(error)
        if not sides:
            raise UserError(
                f"{self.name}: none of {len(chosen)} sampled images can be read; the last: {reason}",
                hint="open one of them in a viewer; sslkit reads " + ", ".join(FORMATS) + " and others",
            )
        return round(statistics.median(sides))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over names relative to the common folder, labels, and sizes in bytes.

        It survives moving the folder, and changes when a file is added, removed, renamed or resized. A pack
        of unchanged files has that of their folder.
        """
        digest = hashlib.sha256()
        labels = [""] * len(self) if self.labels is None else [self.classes[label] for label in self.labels]
        for name, label, size in zip(_relative(self.paths), labels, self.sizes.tolist(), strict=True):
            digest.update(b"%b\0%b\0%d\n" % (name, os.fsencode(label), size))
        return digest.hexdigest()


def open_images(sources: Sequence[str], limit: int | None = None) -> ImageSet:
    """All images of one or several sources, without labels; a file named twice counts once.

    Args:
        sources: DATA as typed: folders (recursive), packs, .txt lists (one path a line, relative to the
            list), .csv tables (header with `path`), `fractal:N`.
        limit: images to keep at most, drawn over the whole set and always the same ones.

    Raises:
        UserError: nothing there, no images, a run or photos beside masks in their place, a list that names
            missing files, a limit under 1.
    """
    if not sources:
        raise UserError("no images given", hint="name a folder, a .txt or .csv list, or fractal:1000")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: at least 1 image expected", "leave it out to take all")
    found = [_found_at(source) for source in sources]
    paths = found[0].images if len(found) == 1 else _union([one.images for one in found])
    if limit is not None and limit < len(paths):
        # The first `limit` names would be a few folders, that is, a few classes.
        paths = paths.take(rng.sample(len(paths), limit, 0))
    return ImageSet(paths=paths, name=", ".join(sources), left_out=LeftOut.of(found))


def found_in(folder: str) -> Listing:
    """Absolute names of the image files under `folder`, sorted by their bytes whatever the locale, and
    what else is there.

    Hidden files and folders are left out (`._*` of macOS too), links to folders are followed, each real
    folder once, and folders that may not be entered are passed over. May be empty.
    """
    root = os.path.abspath(folder)
    return look_through(root) if os.path.isdir(root) else _listed(Names())


def _listed(images: Names) -> Listing:
    """The listing of images from a list, a table or a pack: nothing else lies beside them."""
    return Listing(images, Counter(), [])


def _union(found: Sequence[Names]) -> Names:
    """All names, sorted by their bytes, each once. The parts are sorted."""
    merged = heapq.merge(*(names.as_bytes() for names in found))
    return Names.of_bytes(name for name, _ in groupby(merged))


def none_found(source: str, found: Iterable[Listing] = ()) -> UserError:
    """The error for a folder without images, with what was found in their place."""
    left_out = LeftOut.of(found)
    there = f" among {counted(left_out.count, 'file')}: {left_out.kinds}" if left_out.passed else ""
    looked = "looked in all folders for files ending in " + " ".join(ENDINGS) + " and others"
    return UserError(f"{source}: no images found{there}", left_out.cure or looked)


def _found_at(source: str) -> Listing:
    """Names sorted by their bytes, each once."""
    if fractal.is_name(source):
        return _listed(Names(fractal.names(fractal.count(source))))
    if not os.path.exists(source):
        cure = nearest_path(source, _beside(source) or "fractal:2000 stands for generated images")
        raise UserError(f"{source}: no such file or folder", cure)
    if os.path.isdir(source):
        return _found_in_folder(source)
    if not is_table(source) and not source.lower().endswith(".txt"):
        raise UserError(
            f"{source}: not a folder, a .txt list or a .csv table",
            hint="give the folder that holds the images",
        )
    listed = [row["path"] for row in read_table(source)[0]] if is_table(source) else lines_of(source)
    return _listed(Names(sorted(set(listed), key=os.fsencode)))


def _beside(source: str) -> str:
    """The folders where `source` would be, for a hint; empty if there are none, or no such place."""
    above = os.path.dirname(os.path.abspath(source))
    try:
        with os.scandir(above) as entries:
            first = itertools.islice(entries, 10_000)
            names = sorted(e.name for e in first if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return ""
    shown = ", ".join(os.path.join(os.path.dirname(source), name) for name in names[:6])
    return f"folders there: {shown}{', …' if len(names) > 6 else ''}" if names else ""


def _found_in_folder(source: str) -> Listing:
    if not os.access(source, os.R_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{source}: the folder may not be read", "chmod u+rx, or ask its owner")
    if reader.is_pack(source):
        return _listed(reader.names_of(source))
    refuse_no_images(source)
    found = found_in(source)
    if not found.images:
        raise none_found(source, [found])
    return found


def _relative(paths: Names) -> Iterator[bytes]:
    """Names relative to the folder that all files lie in; packed images as they were called before."""
    files = common_folder(path for path in paths.as_bytes() if not path.startswith(_NOT_FILES))
    originals = common_folder(map(_original, filter(_is_packed, paths.as_bytes())))
    for path in paths.as_bytes():
        yield _original(path).removeprefix(originals) if _is_packed(path) else path.removeprefix(files)


def _is_packed(path: bytes) -> bool:
    return path.startswith(b"pack:")


def _original(path: bytes) -> bytes:
    return os.fsencode(reader.original(os.fsdecode(path)))


def file_bytes(path: bytes) -> int:
    """Size of an image's file, or of a packed image; 0 for a generated one, -1 for a file that is gone."""
    if path.startswith(_NOT_FILES):
        _, part = reader.locate(os.fsdecode(path))
        return part[1] if part else 0
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
