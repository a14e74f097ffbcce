"""The exposure of an image: whether it is dark, clipped or of few levels, with the figures."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sslkit.core.value_range import Range
from sslkit.data.images.numbers import Numbers
from sslkit.data.images.shades import stands_for_none

DARK = 32
"""Brightness, of 255, that 99.9 % of a dark image's values stay below."""
_FEW = 32
"""Levels of brightness below which an image is a mask, or numbers that one far value has squeezed."""
BEYOND = 0.01
"""Share of the numbers that may lie beyond either end of the range."""
CLIPPED = 0.05
"""Share of the numbers that may lie at its white end or beyond."""
WHITE = 0.25
"""Share of an 8-bit image that is pure white; a white background reaches the corners and does not count."""

Faults = list[tuple[str, str]]
"""(kind, detail)."""


def faults(image: Image.Image, numbers: Numbers | None, range: Range) -> Faults:
    """What is wrong with the exposure of an image.

    Args:
        image: RGB, as training sees it.
        numbers: what its file holds, if that has more than 8 bits.
        range: by which they became `image`.
    """
    counts = np.array(image.histogram()).reshape(3, 256)
    found = [*_dark(counts, numbers), *_few_levels(counts)]
    return found + (_white(image, counts) if numbers is None else _clipped(numbers, range))


def _dark(counts: np.ndarray, numbers: Numbers | None) -> Faults:
    """By its file's type, as other programs show it, or as it is seen here."""
    if numbers is not None and numbers.values.dtype.kind != "f" and numbers.values.dtype != np.int8:
        there = numbers.values[~stands_for_none(numbers.values, numbers.missing)]
        levels = 2 ** min(numbers.bits, 32)
        top = int(there.max()) + 1 if there.size else 0
        # Files of 32 bits hardly ever use all of them, so the largest number says nothing.
        if numbers.bits <= 16 and there.size and int(there.min()) >= 0 and 8 * top <= levels:
            return [("dark", f"{numbers.bits}-bit, uses {top} of {levels} levels")]
    bright = counts[:, DARK:].sum() / counts.sum()
    if bright < 0.001 and np.count_nonzero(counts[:, 1:]):
        top = int(np.flatnonzero(counts.sum(0)).max())
        return [("dark", f"brightness up to {top} of 255, {100 * bright:.2g} % from {DARK} on")]
    return []


def _few_levels(counts: np.ndarray) -> Faults:
    """Blank images have a finding of their own."""
    levels = int(np.count_nonzero(counts, axis=1).max())
    return [("few levels", f"{levels} levels of brightness")] if 1 < levels < _FEW else []


def _clipped(numbers: Numbers, range: Range) -> Faults:
    if not range.known:
        return []
    values = numbers.values
    there = values[~stands_for_none(values, (*range.nodata, *numbers.missing))]
    low, high = range.of(values.dtype.kind)
    if not there.size:
        return []
    below, above, beyond = (float(part.mean()) for part in (there < low, there >= high, there > high))
    if max(below, beyond) <= BEYOND and above <= CLIPPED:
        return []
    return [("clipped", f"{100 * below:.1f} % below {low:.9g}, {100 * above:.1f} % at {high:.9g} or above")]


def _white(image: Image.Image, counts: np.ndarray) -> Faults:
    least = WHITE * image.width * image.height
    if counts[:, 255].min() < least:
        return []
    white = (np.asarray(image) == 255).all(2)
    corners = sum(bool(white[row, column]) for row in (0, -1) for column in (0, -1))
    share = white.mean()
    if share < WHITE or corners > 2 or share == 1:
        return []
    return [("clipped", f"{100 * share:.0f} % pure white")]
