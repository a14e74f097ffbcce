"""Which numbers are black and which are white, in files with more than 8 bits.

A photograph's bytes say it themselves. What instruments write does not: 12 bits in files of 16, reflectances,
counts, heights, with numbers that stand for no data. So a set has one range for all its files, and an encoder
keeps that of the images it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslkit.errors import UserError
from sslkit.settings import AUTO

Limits = tuple[float, ...] | Literal["full", "8-bit"]

HUGE = 1e19
"""Floats from here on measure nothing; their last digits are not compared, as tags tell ±3.4e38 in six."""
_CURE = "--range 0,4095 for twelve bits"
_STRIP = 256  # rows that are scaled at once: float64 of the whole image would be eight times its size


@dataclass(frozen=True)
class Range:
    """How the numbers of a set become brightness.

    Attributes:
        limits: (low, high), the numbers that become black and white; what is beyond is clipped. Four numbers
            are those of integers, then of floats. "full": each file's type in full ([0, 65535], of floats
            [0, 1]), or, where its numbers exceed that, from its own minimum to its own maximum, without a
            look at no-data tags; so did versions without ranges. "8-bit": nothing is known, as no such file
            was there; one that turns up is read as by "full".
        nodata: numbers that stand for no data and become black, as NaN and infinities do and what the file
            itself names (GDAL's tag).
    """

    limits: Limits = "full"
    nodata: tuple[float, ...] = ()

    @property
    def known(self) -> bool:
        """Whether it holds numbers, so that files need not be asked."""
        return not isinstance(self.limits, str)

    def of(self, kind: str) -> tuple[float, float]:
        """(low, high) of numbers of a NumPy kind: "f", or "i" and "u"."""
        assert not isinstance(self.limits, str)
        first = 2 if kind == "f" and len(self.limits) == 4 else 0
        return self.limits[first], self.limits[first + 1]

    def setting(self) -> Any:
        """`limits` as JSON and TOML hold them."""
        return self.limits if isinstance(self.limits, str) else list(self.limits)

    def told(self) -> str:
        """In words: "[0, 4095]"."""
        if isinstance(self.limits, str):
            return self.limits
        named = [f"[{low:.9g}, {high:.9g}]" for low, high in pairs(self.limits)]
        return named[0] if len(named) == 1 else f"{named[0]} of integers, {named[1]} of floats"


def as_set(settings: Any) -> Range:
    """The range that a section of resolved settings tells; nothing is known where it says auto."""
    known = settings.range != AUTO and settings.nodata != AUTO
    return Range(settings.range, settings.nodata) if known else BYTES


FULL = Range()
BYTES = Range("8-bit")


def parse(limits: Any, nodata: Any = ()) -> Range:
    """The inverse of `Range.setting`, for what stands in a file. Raises ValueError."""
    numbers = tuple(float(number) for number in nodata)
    if limits in ("full", "8-bit"):
        return Range(limits, numbers)
    if not isinstance(limits, list | tuple) or (wrong := fault(limits)):
        raise ValueError(f"range {limits!r:.60}: {wrong if isinstance(limits, list | tuple) else 'no range'}")
    return Range(tuple(float(number) for number in limits), numbers)


def given(limits: str | Sequence[float]) -> Limits:
    """A range as people give it: "0,4095", "[0, 4095]", "full", or numbers.

    Raises:
        UserError: no such range.
    """
    numbers: Any = limits
    if isinstance(limits, str) and limits != "full":
        try:
            numbers = [float(part) for part in limits.strip("[] ").split(",")]
        except ValueError:
            raise UserError(
                f"--range {limits}: two numbers expected, black and white, or full", _CURE
            ) from None
    try:
        return parse(numbers).limits
    except ValueError as problem:
        raise UserError(f"--range {limits}: {str(problem).rpartition(': ')[2]}", _CURE) from None


def pairs(limits: Sequence[float]) -> list[tuple[float, float]]:
    """Numbers as pairs of low and high."""
    return list(zip(limits[::2], limits[1::2], strict=True))


def fault(limits: Sequence[float]) -> str:
    """What is wrong with the numbers of a range; "" if nothing is."""
    if len(limits) not in (2, 4):
        return "two numbers expected, black and white, or four, of integers and of floats"
    if not all(isinstance(number, int | float) and np.isfinite(number) for number in limits):
        return "finite numbers expected"
    if not all(low < high for low, high in pairs(limits)):
        return "black must be below white"
    return ""


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
