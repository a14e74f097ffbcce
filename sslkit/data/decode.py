"""From a file to an upright RGB image, or to one line that says why not.

Pillow decodes, with an explicit list of formats (never EPS or PDF, which start other programs) and with
our own limit on pixels, read from the header before any memory is taken.
"""

from __future__ import annotations

import os
import stat
import statistics
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, UnidentifiedImageError

from sslkit.errors import UserError

if TYPE_CHECKING:
    from sslkit.data.sources import ImageSet

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What Pillow may open; a file is recognised by its content, whatever its ending says; JPEG includes MPO."""
MAX_PIXELS = 64 * 2**20
"""Just above what a 64-megapixel camera writes; what is larger is a mistake or a decompression bomb."""
MIN_SIDE = 8
"""A shorter side holds no picture, and a crop of it no frequencies."""

_STRIP = 256  # rows that are scaled at once
_ORIENTATION_TAG = 0x0112
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


def read_image(path: str) -> Image.Image:
    """The first frame of an image file, in RGB, upright.

    EXIF orientation is applied, transparency is composed on white, 16-bit, 32-bit and float images are
    scaled by their range (Pillow's own conversion turns them white or black).

    Raises:
        UnreadableImage: missing, damaged, of another format, more than 64 megapixels, a side under 8 pixels.
    """
    return read_with_kind(path)[0]


def read_with_kind(path: str) -> tuple[Image.Image, str]:
    """`read_image`, and format and mode of the file as Pillow names them, such as "PNG I;16"."""
    with _opened(path) as image:
        kind = f"{image.format} {image.mode}"
        image.load()
        return _turned(_to_rgb(image), _orientation(image)), kind


def image_size(path: str) -> tuple[int, int]:
    """(width, height) of the upright image, in pixels, from the header alone.

    Raises:
        UnreadableImage: as `read_image`, as far as a header can tell.
    """
    with _opened(path) as image:
        width, height = image.size
        # Pillow reports the size of a TIFF already turned, of every other format as stored.
        swapped = image.format != "TIFF" and _orientation(image) >= 5
        return (height, width) if swapped else (width, height)


def native_side(images: ImageSet, sample: int = 64) -> int:
    """Median short side, in pixels, of at most `sample` images spread evenly over the set; headers only.

    Raises:
        UserError: none of the sampled files is an image.
    """
    chosen = np.linspace(0, len(images) - 1, min(sample, len(images))).round().astype(int)
    sides, reason = [], ""
    for index in chosen:
        try:
            sides.append(min(images.size(int(index))))
        except UnreadableImage as error:
            reason = str(error)
    if not sides:
        raise UserError(
            f"{images.name}: none of {len(chosen)} sampled images can be read; the last: {reason}",
            hint="open one of them in a viewer; sslkit reads " + ", ".join(FORMATS),
        )
    return round(statistics.median(sides))


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """The opened, not yet decoded file; whatever goes wrong inside becomes UnreadableImage."""
    try:
        with warnings.catch_warnings(), open(path, "rb", opener=_without_waiting) as file:
            # Pillow warns of large images, odd metadata and truncated EXIF; none of it is the user's concern.
            warnings.simplefilter("ignore")
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnreadableImage(path, "not a file but a pipe, a socket or a device")
            with Image.open(file, formats=FORMATS) as image:
                _check_size(path, *image.size)
                yield image
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error, EOFError, …
        raise UnreadableImage(path, _reason(error)) from error


def _without_waiting(path: str, flags: int) -> int:
    """Opens what has become a named pipe without waiting for somebody to write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_size(path: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(path, f"{width}x{height} pixels, more than {MAX_PIXELS // 2**20} megapixels")
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage(path, f"{width}x{height} pixels, a side under {MIN_SIDE}")


def _reason(error: Exception) -> str:
    """One printable line for any exception."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format (" + ", ".join(FORMATS) + "), or a damaged header"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 2**20} megapixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
    return shown or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 … 8; 1 where there is none or the block is broken."""
    try:
        # The base class's method: a PNG's own would decode the whole file to look for a late EXIF chunk.
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled(image).convert("RGB")
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image  # Pillow goes one step at a time
        with_alpha = straight if straight.mode == "RGBA" else straight.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return page
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        # Adobe stores inks inverted and marks the file; Pillow inverts back whether or not the mark is there.
        image = ImageChops.invert(image)
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """A one-channel image of 16 or 32 bits as 8-bit grey.

    The range is the customary one where the values fit it ([0, 65535] for integers, [0, 1] for floats),
    else the image's own minimum and maximum. Values that are not finite count as the lower end; the value
    that a 16-bit PNG declares transparent becomes white.
    """
    values = np.asarray(image)
    clear = image.info.get("transparency") if image.mode.startswith("I") else None
    if values.dtype.itemsize == 2:
        shades = (np.arange(65536) * (255 / 65535)).round().astype(np.uint8)
        if isinstance(clear, int):
            shades[clear] = 255
        return Image.fromarray(shades[values])
    low, high = _range(values, 1.0 if image.mode == "F" else 65535.0)
    # A constant image outside the customary range has no range of its own; it becomes black.
    scale = 255.0 / max(high - low, np.finfo(np.float64).tiny)
    grey = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), _STRIP):  # float64 of the whole image would be eight times its size
        strip = values[first : first + _STRIP].astype(np.float64)
        strip[~np.isfinite(strip)] = low
        grey[first : first + _STRIP] = ((strip - low) * scale).round()
    return Image.fromarray(grey)


def _range(values: NDArray[Any], customary: float) -> tuple[float, float]:
    """(0, customary) where all finite values lie in it, else their minimum and maximum."""
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0, customary
    low = float(values.min(where=finite, initial=np.inf if values.dtype.kind == "f" else values.max()))
    high = float(values.max(where=finite, initial=-np.inf if values.dtype.kind == "f" else values.min()))
    return (0.0, customary) if low >= 0 and high <= customary else (low, high)
