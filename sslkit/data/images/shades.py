"""From the numbers of an image to brightness, and which numbers stand for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

HUGE = 1e19
"""Floats from here on measure nothing; only six digits are compared, as tags write ±3.4e38 with six."""
_STRIP = 256  # rows that are scaled at once: float64 of the whole image would be eight times its size


def stands_for_none(values: NDArray[Any], numbers: Sequence[float]) -> NDArray[np.bool_]:
    """Where `values` are not finite or among `numbers`; bool, of the same shape."""
    floats = values.dtype.kind == "f"
    missing = ~np.isfinite(values) if floats else np.zeros(values.shape, np.bool_)
    for number in numbers:
        if floats and abs(number) >= HUGE:
            with np.errstate(over="ignore"):
                missing |= np.isclose(values, np.float64(number), rtol=1e-5, atol=0)
        elif floats:
            missing |= values == values.dtype.type(number)
        elif float(number).is_integer() and np.can_cast(np.min_scalar_type(int(number)), np.int64):
            info = np.iinfo(values.dtype)
            if info.min <= number <= info.max:
                missing |= values == int(number)
    return missing


def shades(
    values: NDArray[Any], limits: tuple[float, float], missing: Sequence[float] = (), inverted: bool = False
) -> NDArray[np.uint8]:
    """Brightness 0 … 255 of numbers, of the same shape: round(255 (v - low) / (high - low)), clipped.

    Args:
        missing: numbers that become black, whatever `inverted` says.
        inverted: low is white and high is black.
    """
    if values.dtype.itemsize == 2 and values.dtype.kind == "u" and values.size >= 1 << 14:
        shaded: NDArray[np.uint8] = _table(limits, tuple(missing), inverted)[values]
        return shaded
    grey = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), _STRIP):
        strip = values[first : first + _STRIP]
        grey[first : first + _STRIP] = _shaded(strip, limits, missing, inverted)
    return grey


@lru_cache(maxsize=8)
def _table(limits: tuple[float, float], missing: tuple[float, ...], inverted: bool) -> NDArray[np.uint8]:
    return _shaded(np.arange(1 << 16, dtype=np.uint16), limits, missing, inverted)


def _shaded(
    values: NDArray[Any], limits: tuple[float, float], missing: Sequence[float], inverted: bool
) -> NDArray[np.uint8]:
    low, high = limits
    none = stands_for_none(values, missing)
    scaled = (np.where(none, low, values).astype(np.float64) - low) * (255 / (high - low))
    grey = scaled.clip(0, 255).round().astype(np.uint8)
    if inverted:
        grey = 255 - grey
    grey[none] = 0
    return grey
