"""Any of Pillow's modes as 8-bit RGB: transparency on white, more than 8 bits scaled, CMYK converted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslkit.core.value_range import Range
from sslkit.data.images.numbers import Numbers, has_alpha, has_one_channel, one_channel
from sslkit.data.images.shades import shades, stands_for_none


def to_rgb(image: Image.Image, nodata: Sequence[float] = ()) -> Image.Image:
    """The decoded image in RGB, itself if it is; Pillow's conversion turns 16 and 32 bits white or black.

    Args:
        nodata: of one channel of more than 8 bits, as in `Range`, whose "full" this is.
    """
    if has_one_channel(image):
        return _in_full(one_channel(image), nodata).convert("RGB")
    if not has_alpha(image):
        return image.convert("RGB")  # drops the fourth band
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image  # Pillow goes one step at a time
        with_alpha = straight if straight.mode == "RGBA" else straight.convert("RGBA")
        return _on_white(with_alpha, with_alpha.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")


def shaded(numbers: Numbers, range: Range) -> Image.Image:
    """Numbers in RGB by a set's own range."""
    values = numbers.values
    missing = (*range.nodata, *numbers.missing)
    grey = shades(values, range.of(values.dtype.kind), missing, numbers.inverted)
    if numbers.clear is not None:
        grey[values == numbers.clear] = 255
    image = Image.fromarray(grey).convert("RGB")
    return image if numbers.alpha is None else _on_white(image, Image.fromarray(numbers.alpha))


def _on_white(image: Image.Image, opaque: Image.Image) -> Image.Image:
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=opaque)
    return page


def _in_full(numbers: Numbers, nodata: Sequence[float]) -> Image.Image:
    """A one-channel image of more than 8 bits as 8-bit grey, by its type.

    The range is the customary one where the values fit it ([0, 65535] for integers, [0, 1] for floats,
    [-128, 127] for signed bytes), else the image's own minimum and maximum. Values that are not finite are
    black; the value that a 16-bit PNG declares transparent becomes white.
    """
    values = numbers.values
    if values.dtype == np.int8:
        limits = (-128.0, 127.0)
    elif values.dtype.itemsize == 2:
        limits = (0.0, 65535.0)
    else:
        limits = _range(values, 1.0 if values.dtype.kind == "f" else 65535.0, nodata)
    grey = shades(values, limits, nodata, numbers.inverted)
    if numbers.clear is not None and values.dtype.itemsize == 2:
        grey[values == numbers.clear] = 255
    return Image.fromarray(grey)


def _range(values: NDArray[Any], customary: float, nodata: Sequence[float]) -> tuple[float, float]:
    """(0, customary) where all values that stand for something lie in it, else their minimum and maximum."""
    there = ~stands_for_none(values, nodata)
    if not there.any():
        return 0.0, customary
    low, high = (float(values[there].min()), float(values[there].max()))
    if low >= 0 and high <= customary:
        return 0.0, customary
    # A constant image outside the customary range has no range of its own; it becomes black.
    return low, high if high > low else low + 1
