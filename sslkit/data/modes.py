"""Any of Pillow's modes as 8-bit RGB: transparency on white, 16 and 32 bits scaled, inks as on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

_STRIP = 256  # rows that are scaled at once


def to_rgb(image: Image.Image) -> Image.Image:
    """The decoded image in RGB, itself if it is; Pillow's conversion turns 16 and 32 bits white or black."""
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
    return image if image.mode == "RGB" else image.convert("RGB")


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
