"""A set's own range: which numbers are black and white in its files of more than 8 bits, from a sample.

The rule, in this order, over all numbers of the sample that stand for something:

1. From the lowest to the highest number; where an end lies farther out than half the span of the middle
   99.8 %, a few pixels are far from all others, and the range ends at the percentile (0.1 or 99.9) instead.
2. A low end near 0 is 0: above it by no more than a quarter of the high end, or below by a 256th.
3. A high end in the upper quarter of 8, 9, … 16 bits, of whole numbers, is the largest of that many bits.
   Floats in [0, 1] have the range [0, 1], unless an eighth of it holds them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslkit.core.console import counted
from sslkit.core.value_range import BYTES, Limits, Range
from sslkit.data.images.numbers import Numbers
from sslkit.data.images.shades import HUGE, stands_for_none

TAIL = 0.1
"""Percent at either end that may be left out."""
FILLS = (-999.0, -9999.0, -99999.0, -32767.0, -32768.0, -(2.0**31))
"""Numbers that are customary for no data, as those from HUGE on are; they count only far from all others."""

_PIXELS = 1 << 16  # numbers of an image that percentiles are made of
_BITS = range(8, 17)


class RangeEstimate(NamedTuple):
    """A range, why it is that one, and why numbers stand for no data."""

    range: Range
    reason: str = ""
    fills: str = ""

    def facts(self) -> dict[str, str]:
        """Lines about it for people; none where no file has more than 8 bits."""
        lines = {"data.range": f"{self.range.in_words()}  ({self.reason})"} if self.range.known else {}
        if self.range.nodata:
            lines["data.nodata"] = f"{[float(f'{n:.9g}') for n in self.range.nodata]}  ({self.fills})"
        return lines


NONE = RangeEstimate(BYTES)
"""Of images that are plain bytes."""


@dataclass
class _Seen:
    """What was seen of numbers of one kind; `fills`: those that may be no data → images they were in."""

    images: int = 0
    low: float = np.inf
    high: float = -np.inf
    whole: bool = True
    some: list[NDArray[np.float64]] = field(default_factory=list)
    fills: dict[float, int] = field(default_factory=dict)

    def add(self, values: NDArray[Any]) -> None:
        """Numbers of one image, [N]."""
        self.images += 1
        while len(values):
            ends = float(values.min()), float(values.max())
            fill = next((end for end in ends if end in FILLS or abs(end) >= HUGE), None)
            if fill is None:
                self.low, self.high = min(self.low, ends[0]), max(self.high, ends[1])
                break
            self.fills[fill] = self.fills.get(fill, 0) + 1
            values = values[values != fill]
        part = values[:: max(1, -(-len(values) // _PIXELS))].astype(np.float64)
        self.whole = self.whole and bool((part == part.round()).all())
        self.some.append(part)

    def none(self) -> list[float]:
        """Fills that stand for no data: farther from the others than these are from each other."""
        span = self.high - self.low
        return [
            fill
            for fill in self.fills
            if abs(fill) >= HUGE or not (self.low - span <= fill <= self.high + span)
        ]

    def admit_(self, fills: Sequence[float]) -> None:
        """Count fills that are data after all."""
        self.low, self.high = min([self.low, *fills]), max([self.high, *fills])


def own_range(
    sampled: Iterable[Numbers], named: tuple[float, ...] = (), searched: bool = True
) -> RangeEstimate:
    """The range of images, which are looked at one after the other; `BYTES` where there are none.

    Args:
        named: numbers that stand for no data.
        searched: look for others that do.
    """
    kinds: dict[str, _Seen] = {}
    count = 0
    for numbers in sampled:
        values, count = numbers.values, count + 1
        there = ~stands_for_none(values, (*named, *numbers.missing))
        if numbers.clear is not None:
            there &= values != numbers.clear
        kind = "f" if values.dtype.kind == "f" else "i"
        kinds.setdefault(kind, _Seen()).add(values[there])
    if not count:
        return RangeEstimate(Range(BYTES.limits, named))
    found: list[float] = []
    for seen in kinds.values():
        none = seen.none() if searched else []
        seen.admit_([fill for fill in seen.fills if fill not in none])
        found += none
    nodata = tuple(sorted({*named, *found}))
    floats, integers = kinds.get("f"), kinds.get("i")
    if floats and integers and _unit(floats) is None:
        integers = _together(floats, integers)
        floats = None
    parts = [_limits(seen) for seen in (integers, floats) if seen is not None]
    limits: Limits = tuple(number for part in parts for number in part[:2])
    if len(set(parts)) == 1 or parts[0][:2] == parts[-1][:2]:
        limits = parts[0][:2]
    reason = f"of {counted(count, 'sampled image')} with more than 8 bits: "
    reason += "; ".join(dict.fromkeys(part[2] for part in parts))
    return RangeEstimate(Range(limits, nodata), reason, "far from all other numbers" if found else "as given")


def _together(first: _Seen, second: _Seen) -> _Seen:
    return _Seen(
        first.images + second.images,
        min(first.low, second.low),
        max(first.high, second.high),
        first.whole and second.whole,
        first.some + second.some,
    )


def _unit(seen: _Seen) -> tuple[float, float] | None:
    """[0, 1] where floats lie in it and need more than an eighth of it."""
    return (0.0, 1.0) if seen.low >= 0 and 1 / 8 < seen.high <= 1 else None


def _limits(seen: _Seen) -> tuple[float, float, str]:
    """(low, high, why) by the rule at the top of this file."""
    if not seen.low <= seen.high:  # not one number that stands for something
        return 0.0, 1.0, "no numbers but for those of no data"
    reason = f"numbers {seen.low:.9g} to {seen.high:.9g}"
    if unit := _unit(seen):
        return *unit, reason
    low, high = seen.low, seen.high
    bottom, top = np.percentile(np.concatenate(seen.some), (TAIL, 100 - TAIL)).tolist()
    reach = (top - bottom) / 2
    if reach > 0:
        low = low if bottom - low <= reach else bottom
        high = high if high - top <= reach else top
    if (low, high) != (seen.low, seen.high):
        reason += f", {TAIL:g} % at an end left out"
    if -high / 256 <= low <= high / 4:
        low = 0.0
    bits = next((bits for bits in _BITS if 0.75 * 2**bits < high + 1 <= 2**bits), 0) if seen.whole else 0
    if low >= 0 and bits:
        high, reason = 2.0**bits - 1, f"{reason}: {bits} bits"
    low, high = (float(f"{end:.9g}") for end in (low, high))
    return (low, high, reason) if low < high else (low, low + 1, reason)
