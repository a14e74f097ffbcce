"""What an image becomes in a pack: its own bytes, or a smaller JPEG."""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from PIL import Image

from sslkit.core.value_range import FULL, Range
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.loading.workers import mapped
from sslkit.data.packs import reader
from sslkit.data.sources import fractal
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.names import Names

_CHUNK = 8  # images handed to a process at once: what is begun is finished after Ctrl-C
_LONGEST = 65_500  # pixels a side that a JPEG can hold
_BEGINNINGS = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"P": "ppm",
}
"""First bytes of each format that is read → its ending in a shard, by which others choose a decoder."""


@dataclass(frozen=True)
class Settings:
    """What the bytes of a pack depend on, beside the images.

    Attributes:
        size: short side to which larger images are made smaller; None copies every file as it is.
        quality: of the JPEG files written then, 1 … 100, with chroma at half the resolution (4:2:0).
        shard_size: bytes after which a shard ends; one with a single larger image is longer.
    """

    size: int | None = None
    quality: int = 92
    shard_size: int = 256 * 10**6


class Member(NamedTuple):
    """One image as it is written: `reason` says why it could not be read, where it could not."""

    content: bytes
    resized: bool = False
    reason: str = ""


def made(paths: Names, settings: Settings, workers: int, own: Range = FULL) -> Generator[Member, None, None]:
    """Members of all images in order, made by processes that are never far ahead of the caller.

    Args:
        own: by which images of more than 8 bits are read.

    Raises:
        UserError: while iterating, when a process died.
    """
    chunks = (paths[first : first + _CHUNK] for first in range(0, len(paths), _CHUNK))
    for members in mapped(
        partial(_members, settings=settings, own=own), chunks, workers, "made images smaller"
    ):
        yield from members


def _members(names: Names, settings: Settings, own: Range) -> list[Member]:
    images = ImageSet(names, "", range=own)
    return [_member(images, index, settings) for index in range(len(images))]


def _member(images: ImageSet, index: int, settings: Settings) -> Member:
    """The image's own bytes; smaller ones where it is larger than wanted."""
    try:
        if settings.size is not None and (made := _smaller(images, index, settings)):
            return Member(made, resized=True)
        reason = ""
    except UnreadableImage as error:
        reason = error.reason
    try:
        return Member(_content(images.paths[index]), reason=reason)
    except OSError as error:  # gone, or not ours to read: an empty member stands for it
        return Member(b"", reason=error.strerror or str(error))


def _smaller(images: ImageSet, index: int, settings: Settings) -> bytes | None:
    """A JPEG of the wanted short side; None for an image that is not larger, or too long for a JPEG."""
    width, height = images.size(index)
    scale = (settings.size or 0) / min(width, height)
    wanted = max(1, round(width * scale)), max(1, round(height * scale))
    if scale >= 1 or max(wanted) > _LONGEST:
        return None
    image = images.read(index).resize(wanted, Image.Resampling.BICUBIC)
    return _encoded(image, "JPEG", quality=settings.quality, subsampling="4:2:0")


def _content(name: str) -> bytes:
    if fractal.is_name(name):
        return _encoded(fractal.draw(name), "PNG")
    file, part = reader.locate(name)
    with open(file, "rb") as stream:
        return stream.read() if part is None else os.pread(stream.fileno(), part[1], part[0])


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shard_ending(content: bytes, name: str) -> str:
    """By what the bytes are; by the file's name where they are nothing known."""
    known = next((ending for start, ending in _BEGINNINGS.items() if content.startswith(start)), "")
    return known or os.path.splitext(name)[1].lstrip(".").lower()
