"""From a file to an upright RGB image, or to crops of it, or to one line that says why not.

An opened file is a `Picture`: its size is known from the header, and it is decoded once, when first needed
and no finer than needed. Pillow decodes, with an explicit list of formats (formats.py) and with our own limit
on pixels, read from the header before any memory is taken. The content tells the format, not the ending.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from sslkit.core.value_range import FULL, Range
from sslkit.data.images import turbo
from sslkit.data.images.formats import FORMATS, open_image, turns_itself, without_waiting
from sslkit.data.images.modes import shaded, to_rgb
from sslkit.data.images.numbers import Numbers, has_one_channel, has_wide_channels, mend_, numbers_of
from sslkit.data.images.picture import Picture, Pixels
from sslkit.data.images.range_estimate import own_range

MAX_PIXELS = 64 * 2**20
"""Just above what a 64-megapixel camera writes; what is larger is a mistake or a decompression bomb."""
MIN_SIDE = 8
"""A shorter side holds no picture, and a crop of it no frequencies."""

ALL_16_BITS = Range((0.0, 65535.0))

ByteRange = tuple[int, int]
"""(offset, size): where in a file an image is, bytes."""

_AT_ONCE = 16 * 2**20  # bytes; a smaller file is read in one piece, a larger one as the decoder asks for it
_REDUCIBLE = {"JPEG RGB", "JPEG L", "MPO RGB", "MPO L"}  # the decoder can skip the high frequencies
_WIDTH_TAG, _HEIGHT_TAG, _ORIENTATION_TAG = 256, 257, 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(Exception):
    """A file that can't be used as an image; `reason` is one line for `skipped.tsv`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Encoded(Picture):
    """An image in an opened file."""

    def __init__(self, path: str, file: BinaryIO, range: Range = FULL) -> None:
        self.path, self._file, self._range = path, file, range
        self._ready: tuple[Image.Image | Pixels, int] | None = None
        with _Readable(path), _silently():
            self._header = self._read_header()
            wide = ";16" if has_wide_channels(self._header) else ""
            self.kind = f"{self._header.format} {self._header.mode}{wide}"
            self._orientation = _orientation(self._header)
        self.width, self.height = _stored_size(self._header)
        if self._orientation >= 5:
            self.width, self.height = self.height, self.width

    def _read_header(self) -> Image.Image:
        self._file.seek(0)
        image = open_image(self._file)
        _check_size(self.path, *image.size)
        return image

    def numbers(self) -> Numbers | None:
        """What the file holds, as stored, if it has more than 8 bits a channel. Raises UnreadableImage."""
        with _Readable(self.path), _silently():
            return numbers_of(self._read_header(), self._read_header)

    def _decoded(self, factor: int) -> tuple[Image.Image | Pixels, int]:
        if self._ready is None or self._ready[1] > factor:
            factor = factor if self.kind in _REDUCIBLE else 1
            with _Readable(self.path), nullcontext() if self.kind in _REDUCIBLE else _silently():
                # Decoding consumes the header: it is read again for an image that is needed again, and finer.
                header = self._header if self._ready is None else self._read_header()
                self._ready = self._decode(header, factor), factor
        return self._ready

    def _decode(self, image: Image.Image, factor: int) -> Image.Image | Pixels:
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        if self.kind in _REDUCIBLE and self._orientation == 1 and isinstance(self._file, io.BytesIO):
            pixels = turbo.decode(self._file.getvalue(), *image.size)
            if pixels is not None:
                return pixels
        upright = self._rgb(image)
        turn = _UPRIGHT.get(_orientation(image))  # once decoded, by which a TIFF may have been turned
        upright = upright if turn is None else upright.transpose(turn)
        if upright.size != (-(-self.width // factor), -(-self.height // factor)):
            raise ValueError(f"{upright.width}x{upright.height} pixels, its header says otherwise")
        return upright

    def _rgb(self, image: Image.Image) -> Image.Image:
        # Of colours whose range is 16 bits in full Pillow's upper bytes are all that is needed.
        wide = has_wide_channels(image) and self._range != ALL_16_BITS
        if self._range.known and (wide or has_one_channel(image)):
            numbers = numbers_of(image, self._read_header)
            assert numbers is not None
            return shaded(numbers, self._range)
        mend_(image)
        image.load()
        return to_rgb(image, self._range.nodata) if self._range.nodata else to_rgb(image)


@contextmanager
def opened(path: str, part: ByteRange | None = None, range: Range = FULL) -> Iterator[Picture]:
    """The image file, its header read, to be decoded inside the `with` when and as far as it is needed.

    Args:
        part: the image is these bytes of the file alone.
        range: as for `read_image`.

    Raises:
        UnreadableImage: missing, of another format, more than 64 megapixels, a side under 8 pixels.
    """
    with _source(path, part, at_once=True) as file:
        yield _Encoded(path, file, range)


def read_image(path: str, part: ByteRange | None = None, range: Range | None = None) -> Image.Image:
    """The first frame of an image file, in RGB, upright.

    EXIF orientation is applied, transparency is composed on white, and 16-bit, 32-bit and float images are
    scaled (Pillow's own conversion turns them white or black).

    Args:
        part: the image is these bytes of the file alone.
        range: the numbers that are black and white where there are more than 8 bits; by default found of this
            image alone. `Encoder.range` is that of the images an encoder was trained on.

    Raises:
        UnreadableImage: missing, damaged, of another format, more than 64 megapixels, a side under 8 pixels.
    """
    if range is None:
        numbers = read_numbers(path, part)
        range = FULL if numbers is None else own_range([numbers]).range
    with opened(path, part, range) as picture:
        return picture.rgb()


def read_numbers(path: str, part: ByteRange | None = None) -> Numbers | None:
    """The numbers of a file with more than 8 bits a channel; None for others, of which the header is read.

    Raises:
        UnreadableImage: as `read_image`.
    """
    with _source(path, part, at_once=False) as file:
        return _Encoded(path, file).numbers()


def image_size(path: str, part: ByteRange | None = None) -> tuple[int, int]:
    """(width, height) of the upright image, in pixels, from the header alone.

    Raises:
        UnreadableImage: as `read_image`, as far as a header can tell.
    """
    with _source(path, part, at_once=False) as file:
        picture = _Encoded(path, file)
        return picture.width, picture.height


@contextmanager
def _source(path: str, part: ByteRange | None, *, at_once: bool) -> Iterator[BinaryIO]:
    """The opened file, or in memory the bytes of it that are wanted. Raises UnreadableImage."""
    with _Readable(path):
        file = open(path, "rb", opener=without_waiting)  # noqa: SIM115 (what its user raises is not ours)
    with file:
        with _Readable(path):
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage(path, "not a file but a pipe, a socket or a device")
            whole = at_once and status.st_size <= _AT_ONCE
            if part is not None or whole:
                content = _bytes_of(file, part or (0, status.st_size), status.st_size)
        yield file if part is None and not whole else content


def _bytes_of(file: BinaryIO, part: ByteRange, length: int) -> io.BytesIO:
    offset, size = part
    if offset < 0 or offset + size > length:  # before memory is taken for what is not there
        raise OSError(f"the image's bytes {offset} to {offset + size} reach beyond the file's {length}")
    if offset:
        file.seek(offset)
    return io.BytesIO(file.read(size))


class _Readable:
    """Whatever goes wrong inside becomes UnreadableImage.

    Pillow raises OSError, ValueError, SyntaxError, struct.error, EOFError, …
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UnreadableImage):
            raise UnreadableImage(self.path, _reason(error)) from error


def _silently() -> warnings.catch_warnings:
    """Pillow warns of large images, odd metadata and truncated EXIF; none of it is the user's concern."""
    return warnings.catch_warnings(action="ignore")


def _check_size(path: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(path, f"{width}x{height} pixels, more than {MAX_PIXELS // 2**20} megapixels")
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage(path, f"{width}x{height} pixels, a side under {MIN_SIDE}")


def _reason(error: Exception) -> str:
    """One printable line for any exception."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format (" + ", ".join(FORMATS) + " and others), or a damaged header"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 2**20} megapixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
    return shown or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 … 8; 1 where there is none, the block is broken, or the decoder has turned the
    image.
    """
    if turns_itself(image):
        return 1
    try:
        # The base class's method: a PNG's own would decode the whole file to look for a late EXIF chunk.
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) before it is turned upright, which later versions of Pillow have done of a TIFF."""
    if image.format != "TIFF":
        return image.size
    tags: Mapping[int, int] = image.tag_v2  # type: ignore[attr-defined]
    return tags[_WIDTH_TAG], tags[_HEIGHT_TAG]
