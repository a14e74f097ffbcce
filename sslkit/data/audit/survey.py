"""One look at every image of a set, by several processes; 97 bytes of each are kept (likeness.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sslkit.core.console import Bar
from sslkit.core.value_range import Range
from sslkit.data.audit.exposure import faults
from sslkit.data.audit.likeness import LIKENESS, Looks, look_at
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.loading.workers import mapped, usable_cores
from sslkit.data.sources import fractal
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.names import Names

_HUGE = 16 * 10**6
"""Pixels above which decoding is what training would wait for."""

_CHUNK = 32  # images handed to a process at once
Marks = list[tuple[int, str, str]]
_Chunk = tuple[Looks, list[int], Counter[str], list[tuple[int, str]], Marks]


@dataclass
class Seen:
    """One image set after a look at every image."""

    images: ImageSet
    looks: Looks  # [N]; zeros where the image can't be read
    readable: NDArray[np.bool_]  # [N]
    kinds: Counter[str] = field(default_factory=Counter)  # "JPEG RGB" → images
    bad: list[tuple[str, str]] = field(default_factory=list)  # (path, reason)
    faults: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # of exposure → (path, detail)

    def short_sides(self) -> NDArray[np.int64]:
        """Of the readable images, in pixels."""
        sides: NDArray[np.int64] = np.minimum(self.looks["width"], self.looks["height"]).astype(np.int64)
        return sides[self.readable]

    def huge(self) -> int:
        """Images of more than HUGE pixels."""
        return int((self.looks["width"].astype(np.int64) * self.looks["height"] > _HUGE).sum())


def see(images: ImageSet, workers: int | None, bar: Bar) -> Seen:
    """Decode every image.

    Args:
        workers: processes that decode; 0 decodes in this one, None takes one for each core.
        bar: advanced as images are read.

    Raises:
        UserError: a process died while it decoded.
    """
    seen = Seen(images, np.zeros(len(images), LIKENESS), np.zeros(len(images), bool))
    chunks = [range(first, min(first + _CHUNK, len(images))) for first in range(0, len(images), _CHUNK)]
    parts = [[images.paths[index] for index in chunk] for chunk in chunks]
    work = partial(_read, own=images.range)
    count = min(usable_cores() if workers is None else workers, len(parts))
    alone = workers is None and count <= 1
    found = mapped(work, parts, 0 if alone else count, "read images")
    for chunk, (looks, readable, kinds, bad, marks) in zip(chunks, found, strict=True):
        here = [chunk[position] for position in readable]
        seen.looks[here] = looks
        seen.readable[here] = True
        seen.kinds += kinds
        seen.bad += [(images.paths[chunk[position]], reason) for position, reason in bad]
        for position, kind, detail in marks:
            seen.faults.setdefault(kind, []).append((images.paths[chunk[position]], detail))
        bar.advance(len(chunk))
    return seen


def _read(paths: Sequence[str], own: Range) -> _Chunk:
    """Looks of what can be read, their positions, kinds of files, (position, reason) of the others, and
    (position, kind, detail) of faults of exposure.
    """
    images = ImageSet(Names(paths), "", range=own)
    looks, readable, kinds, bad = [], [], Counter[str](), []
    marks: Marks = []
    for position, path in enumerate(paths):
        try:
            with images.opened(position) as picture:
                image, numbers = picture.rgb(), picture.numbers()
        except UnreadableImage as error:
            bad.append((position, error.reason))
            continue
        looks.append(look_at(image))
        readable.append(position)
        kinds["generated RGB" if fractal.is_name(path) else picture.kind] += 1
        marks += [(position, kind, detail) for kind, detail in faults(image, numbers, own)]
    return np.array(looks, LIKENESS), readable, kinds, bad, marks
