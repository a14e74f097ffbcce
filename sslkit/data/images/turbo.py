"""JPEG by libjpeg-turbo without Pillow's RGBX copy, where simplejpeg is installed.

The same library decodes for Pillow, so that the pixels are the same ones, to the last bit.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

library: ModuleType | None
try:
    import simplejpeg
except (ImportError, ValueError):  # absent, or built for another NumPy
    library = None
else:
    library = simplejpeg


def decode(content: bytes, width: int, height: int) -> NDArray[np.uint8] | None:
    """A JPEG, grey or colour, as uint8 [height, width, 3]: its size, or its size by 2, 4 or 8, rounded up.

    None where the library is missing, or the file has faults; Pillow forgives some, and names the others.
    """
    if library is None:
        return None
    try:
        pixels: NDArray[np.uint8] = library.decode_jpeg(content, "RGB", min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None
