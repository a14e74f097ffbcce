"""Perceptual hash and near-duplicate test: equal, almost equal, or not.

A near duplicate here is the same picture saved again: resized, recompressed, slightly brighter or cut at its
edge by a few pixels. Another photo of the same thing is not one.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LIKENESS = np.dtype(
    [
        ("digest", "S32"),  # SHA-256 of size and pixels
        ("hash", "<u8"),  # perceptual hash
        ("colours", "u1", 48),  # the image in 4 x 4 pixels
        ("width", "<u4"),
        ("height", "<u4"),
        ("blank", "?"),  # one colour all over
    ]
)
"""What is kept of an image, 97 bytes."""
Looks = NDArray[np.void]

BLANK = 6
"""Grey levels between the darkest and the brightest part of an image that shows nothing."""
HASH_BITS = 4
"""Bits in which the hashes of near duplicates may differ."""
COLOUR_LEVELS = 16.0
"""Mean difference of 4 x 4 pixels, of 255, up to which two images have the same colours."""
SAME_HASH_BITS, SAME_COLOUR_LEVELS = 12, 2.0
"""The same limits for images whose colours are the same but for rounding. Of a drawing or a gradient most
coefficients of the hash are zero, as is their median, so that the rounding of whatever JPEG encoder is
installed decides many bits. (Ignoring coefficients near the median instead lost near copies of photos: of
those cut by 2 px 93 % were found, and now 96 % are.)"""
_BANDS = (0, 13, 26, 39, 52, 64)
_REACH = 1024  # neighbours within a bucket that are compared, so that time stays linear in the images
_SIDE = 32
_COSINES = np.cos(np.pi / _SIDE * np.arange(8)[:, None] * (np.arange(_SIDE) + 0.5))
"""The first eight rows of the DCT-II of 32 points, up to their scale."""
_BIT_COUNTS = np.array([bin(word).count("1") for word in range(1 << 16)], np.uint8)


def look_at(image: Image.Image) -> Looks:
    """What to remember of an RGB image; a scalar of dtype LOOK, shape []."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small).astype(np.float64)
    cells = pixels.reshape(4, 8, 4, 8, 3).mean((1, 3))
    digest = hashlib.sha256(b"%dx%d:" % image.size)
    digest.update(image.tobytes())
    grey = pixels @ (0.299, 0.587, 0.114)
    entry = (digest.digest(), perceptual_hash(grey), cells.round().ravel(), *image.size, np.ptp(grey) < BLANK)
    return np.array(entry, LIKENESS)


def perceptual_hash(grey: NDArray[np.float64]) -> int:
    """64 bits: which of the 64 lowest coefficients of the cosine transform exceed their median.

    The usual "pHash" (Zauner 2010): what survives resizing, compression and a change of brightness is the
    order of the low frequencies.

    Args:
        grey: [32, 32], any range.
    """
    low = _COSINES @ grey @ _COSINES.T  # [8, 8]
    above = low.ravel() > np.median(low.ravel()[1:])
    return int.from_bytes(np.packbits(above).tobytes(), "big")


def near_groups(looks: Looks) -> NDArray[np.int64]:
    """For each of [N] images the position of the first image of its group; its own where it stands alone.

    Two images are joined when their hashes differ in at most HASH_BITS bits and their colours by at most
    COLOUR_LEVELS, or by SAME_HASH_BITS and SAME_COLOUR_LEVELS; groups are what is joined by any chain. Five
    bands of bits: if four bits differ, one band is equal (and of more bits that differ most often one), so
    only images within one bucket of a band are compared, by walking the sorted bucket.
    """
    group: NDArray[np.int64] = np.arange(len(looks))
    hashes, colours = looks["hash"], looks["colours"].astype(np.int16)
    for low, high in pairwise(_BANDS):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.lexsort((hashes, band))
        here = np.arange(len(order))
        for step in range(1, _REACH + 1):
            here = here[here + step < len(order)]
            here = here[band[order[here]] == band[order[here + step]]]
            if not len(here):
                break
            first, second = order[here], order[here + step]
            apart = group[first] != group[second]
            first, second = first[apart], second[apart]
            bits = _bits(hashes[first] ^ hashes[second])
            near = bits <= SAME_HASH_BITS
            first, second, bits = first[near], second[near], bits[near]
            levels = np.abs(colours[first] - colours[second]).mean(1)
            alike = ((bits <= HASH_BITS) & (levels <= COLOUR_LEVELS)) | (levels <= SAME_COLOUR_LEVELS)
            _join_(group, first[alike], second[alike])
    return group


def _join_(group: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
    """Union of the groups of each pair; afterwards every entry names its group's lowest member."""
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        low, high = sorted((_root(group, a), _root(group, b)))
        group[high] = low
    while len(first) and (group != group[group]).any():
        group[:] = group[group]


def _root(group: NDArray[np.int64], member: int) -> int:
    while group[member] != member:
        member = int(group[member])
    return member


def _bits(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of ones in each word (NumPy has its own from 2.0 on)."""
    parts = np.ascontiguousarray(words).view(np.uint16).reshape(-1, 4)
    counts: NDArray[np.int64] = _BIT_COUNTS[parts].sum(1, dtype=np.int64)
    return counts
