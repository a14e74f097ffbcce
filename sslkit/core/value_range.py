"""Which numbers are black and which are white, in files with more than 8 bits.

A photograph's bytes say it themselves. What instruments write does not: 12 bits in files of 16, reflectances,
counts, heights, with numbers that stand for no data. So a set has one range for all its files, and an encoder
keeps that of the images it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sslkit.core.config.setting import AUTO
from sslkit.core.errors import UserError

Limits = tuple[float, ...] | Literal["full", "8-bit"]

_CURE = "--range 0,4095 for twelve bits"


@dataclass(frozen=True)
class Range:
    """How the numbers of a set become brightness.

    Attributes:
        limits: (low, high), the numbers that become black and white; what is beyond is clipped. Four numbers
            are those of integers, then of floats. "full": each file's type in full ([0, 65535], of floats
            [0, 1]), or, where its numbers exceed that, from its own minimum to its own maximum, without a
            look at no-data tags, as versions without ranges did. "8-bit": nothing is known, as no such file
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

    def in_words(self) -> str:
        """As text: "[0, 4095]"."""
        if isinstance(self.limits, str):
            return self.limits
        named = [f"[{low:.9g}, {high:.9g}]" for low, high in pairs(self.limits)]
        return named[0] if len(named) == 1 else f"{named[0]} of integers, {named[1]} of floats"


def as_set(settings: Any) -> Range:
    """The range in a section of settings; `BYTES` where they are still auto."""
    known = settings.range != AUTO and settings.nodata != AUTO
    return Range(settings.range, settings.nodata) if known else BYTES


FULL = Range()
BYTES = Range("8-bit")


def parse_range(limits: Any, nodata: Any = ()) -> Range:
    """The inverse of `Range.setting`, for what stands in a file. Raises ValueError."""
    numbers = tuple(float(number) for number in nodata)
    if limits in ("full", "8-bit"):
        return Range(limits, numbers)
    if not isinstance(limits, list | tuple) or (wrong := _fault(limits)):
        raise ValueError(f"range {limits!r:.60}: {wrong if isinstance(limits, list | tuple) else 'no range'}")
    return Range(tuple(float(number) for number in limits), numbers)


def parse_limits(limits: str | Sequence[float]) -> Limits:
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
        return parse_range(numbers).limits
    except ValueError as problem:
        raise UserError(f"--range {limits}: {str(problem).rpartition(': ')[2]}", _CURE) from None


def pairs(limits: Sequence[float]) -> list[tuple[float, float]]:
    """Numbers as pairs of low and high."""
    return list(zip(limits[::2], limits[1::2], strict=True))


def _fault(limits: Sequence[float]) -> str:
    """What is wrong with the numbers of a range; "" if nothing is."""
    if len(limits) not in (2, 4):
        return "two numbers expected, black and white, or four, of integers and of floats"
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in limits):
        return "finite numbers expected"
    if not all(low < high for low, high in pairs(limits)):
        return "black must be below white"
    return ""
