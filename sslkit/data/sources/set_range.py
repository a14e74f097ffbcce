"""The range by which a set's images of more than 8 bits are read: as set, or found over a sample of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from sslkit.core import rng
from sslkit.core.config.setting import AUTO
from sslkit.core.console import Console, visible
from sslkit.core.value_range import BYTES, Range, parse_limits
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.images.numbers import Numbers
from sslkit.data.images.range_estimate import RangeEstimate, own_range
from sslkit.data.packs import reader
from sslkit.data.sources.image_set import ImageSet

SAMPLE = 64
"""Images whose numbers are looked at."""
LARGE, NUMBERS = 16, 2**28
"""`LARGE` images are enough where they hold `NUMBERS` numbers together."""
HEADERS = 256
"""Files that are opened at most to find `SAMPLE` such images."""

_BYTES_ONLY = tuple(
    ending.encode() for ending in (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".gif")
)
_OTHERS = 16  # files that are opened although their names promise bytes


def find_range(images: ImageSet, limits: Any = AUTO, nodata: Any = AUTO) -> RangeEstimate:
    """The range of a set by its settings: as given, that of a pack made with one, or the images' own.

    Args:
        limits: `data.range`; nodata: `data.nodata`.
    """
    named = () if nodata == AUTO else tuple(nodata)
    if limits != AUTO:
        return RangeEstimate(Range(limits, named), "as given", "as given")
    names = enumerate(images.paths.as_bytes())
    wide = [index for index, name in names if not name.lower().endswith(_BYTES_ONLY)]
    if wide and (made := reader.pack_range(images.paths)):
        reason = "that of the pack, which was made by it"
        return RangeEstimate(replace(made, nodata=named or made.nodata), reason, reason)
    return own_range(_sampled(images, wide), named, nodata == AUTO)


def with_range(images: ImageSet, own: Range, console: Console) -> ImageSet:
    """Images read by a source's range, or by one found for them, which is printed, where that has none."""
    if own != BYTES:
        return replace(images, range=own)
    found = find_range(images)
    for name, text in found.facts().items():
        console.say(f"{name} = {text}")
    return replace(images, range=found.range)


def choose_range(choice: Callable[[str, Any, str], Any], found: RangeEstimate) -> None:
    """Resolve `data.range` and `data.nodata` by `choice(key, value, reason)`.

    Without a reason, and so not printed, where no image has more than 8 bits.
    """
    own = found.range
    choice("data.range", own.limits, found.reason if own.known else "")
    choice("data.nodata", own.nodata, found.fills if own.nodata else "")


def asked_range(own: Range, limits: str | Sequence[float] | None, source: str, console: Console) -> Range:
    """The range of a source, or the one that was asked for instead, with a warning where they differ.

    Raises:
        UserError: `limits` are no range.
    """
    if limits is None:
        return own
    asked = replace(own, limits=parse_limits(limits))
    if own.known and own != asked:
        # No error: files that were converted meanwhile (12 bits scaled to 16) need another range to look as
        # they did in training.
        trained = f"{visible(source)} was trained on numbers by data.range = {own.in_words()}"
        console.warn(f"{trained}, and sees them by {asked.in_words()}")
    return asked


def _sampled(images: ImageSet, wide: Sequence[int]) -> Iterator[Numbers]:
    """The numbers of up to SAMPLE images with more than 8 bits, drawn over the whole set, the same always.

    Args:
        wide: positions of the images whose names leave room for more than bytes.
    """
    some = set(wide)
    looked = [wide[i] for i in rng.permutation(len(wide), 0, 0, 0, min(len(wide), HEADERS))]
    anywhere = rng.permutation(len(images), 0, 0, 0, min(len(images), _OTHERS))
    found = size = 0
    for index in [*looked, *(int(i) for i in anywhere if int(i) not in some)]:
        try:
            numbers = images.numbers(int(index))
        except UnreadableImage:
            continue
        if numbers is not None:
            found, size = found + 1, size + numbers.values.size
            yield numbers
        if found == SAMPLE or (found >= LARGE and size >= NUMBERS):
            return
