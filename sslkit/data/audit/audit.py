"""A look at images before hours are spent on them: what can't be read, what is doubled, what has leaked.

Every image is decoded once (survey.py); what is kept of it is small, so a million images need some hundred
megabytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.core.config.validate import checked
from sslkit.core.console import SILENT, Console, counted, visible
from sslkit.core.errors import UserError
from sslkit.data.audit.likeness import Looks, near_groups
from sslkit.data.audit.survey import Seen, see
from sslkit.data.images.range_estimate import NONE, RangeEstimate
from sslkit.data.sources.image_set import open_images
from sslkit.data.sources.labels import open_labelled
from sslkit.data.sources.layout import Ambiguous
from sslkit.data.sources.left_out import LeftOut
from sslkit.data.sources.set_range import find_range

TINY = 32
"""Short side, in pixels, below which an image teaches little."""
SIDES = (8, 32, 64, 128, 224, 384, 512, 1024, 2048, 4096)
"""Lower ends of the histogram of short sides."""

_ADVICE = {
    "dark": "they look black in other programs, or here too: data.range sets black and white",
    "clipped": "too much at an end of the range, where nothing is to be seen: data.range, or leave them out",
    "few levels": "masks, or numbers that one far value squeezes: leave them out, or data.nodata, data.range",
}


@dataclass(frozen=True)
class Defect:
    """One kind of defect: how many images, what it means and what to do, and (path, detail) of each.

    Of files that were passed over, `rows` are endings and how many files have them.
    """

    kind: str
    count: int
    advice: str
    rows: list[tuple[str, str]]
    noun: str = "image"


@dataclass(frozen=True)
class Audit:
    """What was found: `findings` are defects, the rest describes."""

    seen: Seen
    against: Seen | None
    findings: list[Defect]
    classes: dict[str, int]
    seconds: float
    notes: tuple[str, ...] = ()  # how labels were read
    numbers: RangeEstimate = NONE  # how images of more than 8 bits were read, if there are any

    @property
    def rate(self) -> float:
        """Images per second."""
        count = len(self.seen.images) + (len(self.against.images) if self.against else 0)
        return count / max(self.seconds, 1e-9)

    def histogram(self) -> dict[str, int]:
        """Range of the short side → images; empty ranges at both ends are left out."""
        counts = np.histogram(self.seen.short_sides(), bins=[*SIDES, np.inf])[0]
        filled = np.flatnonzero(counts)
        if not len(filled):
            return {}
        names = [f"{low}-{high - 1}" for low, high in pairwise(SIDES)] + [f"{SIDES[-1]}+"]
        return {names[i]: int(counts[i]) for i in range(filled[0], filled[-1] + 1)}

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """(kind, path, detail) of every finding; strange bytes and control characters as escapes."""
        for finding in self.findings:
            for path, detail in finding.rows:
                yield finding.kind, visible(path), visible(detail)

    def to_document(self) -> dict[str, Any]:
        """Everything as JSON can say it."""
        return {
            "data": self.seen.images.name,
            "count": len(self.seen.images),
            "against": self.against.images.name if self.against else None,
            "kinds": dict(self.seen.kinds.most_common()),
            "short_sides": self.histogram(),
            "huge": self.seen.huge(),
            "classes": self.classes,
            "settings": self.numbers.facts(),
            "findings": {
                finding.kind: {
                    "count": finding.count,
                    "advice": finding.advice,
                    "images": [list(row) for row in finding.rows],
                }
                for finding in self.findings
            },
            "images_per_second": round(self.rate, 1),
        }


def audit(
    sources: Sequence[str],
    against: Sequence[str] = (),
    workers: int | None = None,
    console: Console = SILENT,
) -> Audit:
    """Decode every image and say what is wrong with the set.

    Args:
        sources: DATA as everywhere.
        against: DATA that should share no image with `sources`, such as a validation set.
        workers: processes that decode; 0 decodes in this one, None takes one for each core.

    Raises:
        UserError: nothing to look at, or a process died while it decoded.
    """
    if workers is not None:
        checked("--workers", workers, int, {"low": 0})
    images, other = open_images(sources), open_images(against) if against else None
    began = time.monotonic()
    numbers = find_range(images)
    images = replace(images, range=numbers.range)
    other = None if other is None else replace(other, range=numbers.range)
    with console.bar("checking", len(images) + (len(other) if other else 0)) as bar:
        seen = see(images, workers, bar)
        seen_other = see(other, workers, bar) if other else None
    labels, classes, notes = _labels(sources)
    found = [_passed(seen, seen_other), *_defects(seen), *_doubles(seen, seen_other, labels)]
    found = [finding for finding in found if finding.count]
    return Audit(seen, seen_other, found, classes, time.monotonic() - began, notes, numbers)


def _labels(sources: Sequence[str]) -> tuple[dict[str, str], dict[str, int], tuple[str, ...]]:
    """(path → class name, class name → images, how they were read); empty where there are no labels."""
    labels: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    if len(sources) == 1:
        try:
            for part in open_labelled(sources[0]):
                names = (part.classes[number] for number in part.labels or ())
                labels |= dict(zip(part.paths, names, strict=True))
                notes += part.notes
        except Ambiguous as problem:
            notes = (f"labels: {problem.message} ({problem.hint})",)
        except UserError:  # none, as for pre-training
            pass
    return labels, dict(Counter(labels.values()).most_common()), notes


def _passed(seen: Seen, other: Seen | None) -> Defect:
    """Files in the folders of the images that are not read."""
    left_out = seen.images.left_out + (other.images.left_out if other else LeftOut())
    advice = f"{left_out.kinds}: {left_out.cure or 'convert what is an image, remove what is none'}"
    rows = [(ending or "without ending", counted(number, "file")) for ending, number in left_out.passed]
    return Defect("passed over", left_out.count, advice, rows, "file")


def _defects(seen: Seen) -> list[Defect]:
    """What an image has by itself."""
    paths, looks = seen.images.paths, seen.looks
    short = np.minimum(looks["width"], looks["height"])
    tiny = np.flatnonzero(seen.readable & (short < TINY))
    blank = np.flatnonzero(seen.readable & looks["blank"])
    sizes = [f"{looks['width'][i]}x{looks['height'][i]}" for i in tiny]
    return [
        Defect(
            "unreadable",
            len(seen.bad),
            "can't be read, pretrain would skip them: repair or delete them",
            seen.bad,
        ),
        Defect(
            "tiny",
            len(tiny),
            f"short side under {TINY} px, with little to learn from: leave them out",
            [(paths[i], size) for i, size in zip(tiny, sizes, strict=True)],
        ),
        Defect(
            "blank",
            len(blank),
            "one colour and nothing else: leave them out",
            [(paths[i], "one colour") for i in blank],
        ),
        *(Defect(kind, len(rows), _ADVICE[kind], rows) for kind, rows in sorted(seen.faults.items())),
    ]


def _doubles(seen: Seen, other: Seen | None, labels: dict[str, str]) -> list[Defect]:
    """Images that are there twice, within the set or in the other one."""
    parts = [seen, other] if other else [seen]
    paths = [path for part in parts for path in np.array(part.images.paths, object)[part.readable]]
    looks = np.concatenate([part.looks[part.readable] for part in parts])
    own = int(seen.readable.sum())  # readable images of the first set; the others are of the second
    copy_of, near_of = groups(looks)
    copies, near = _repeats(copy_of[:own]), _repeats(near_of[:own])
    near = [(i, first) for i, first in near if copy_of[i] == i]
    disagreeing = [(i, j) for i, j in copies + near if labels.get(paths[i]) != labels.get(paths[j])]
    leaks = shared(copy_of, own)
    leaked = {i for i, _ in leaks}
    near_leaks = [(i, j) for i, j in shared(near_of, own) if i not in leaked]
    name = other.images.name if other else ""

    def finding(kind: str, pairs: list[tuple[int, int]], advice: str) -> Defect:
        return Defect(kind, len(pairs), advice, [(paths[i], paths[j]) for i, j in pairs])

    return [
        finding("copies", copies, "exact copies of others, pixel for pixel: keep one of each"),
        finding("near copies", near, "almost the same as others: look at some, keep one of each"),
        finding(
            "contradictions",
            disagreeing,
            "copies or near copies with another label: correct the labels",
        ),
        finding("leaks", leaks, f"also in {name}: remove them here, or scores on it mean nothing"),
        finding(
            "near leaks", near_leaks, f"almost the same as images in {name}: look at some, remove them here"
        ),
    ]


def groups(looks: Looks) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each image the first one with the same pixels, and the first one of those that look alike."""
    _, first, group = np.unique(looks["digest"], return_index=True, return_inverse=True)
    copy_of = first[group]
    # Blank images are alike in everything that a hash can see, whatever their colour.
    distinct = np.flatnonzero((copy_of == np.arange(len(looks))) & ~looks["blank"])
    near_of = np.arange(len(looks))
    near_of[distinct] = distinct[near_groups(looks[distinct])]
    return copy_of, near_of[copy_of]


def _repeats(first: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(position, position of its group's first) for all but the first."""
    return [(i, int(j)) for i, j in enumerate(first) if i != j]


def shared(first: NDArray[np.int64], own: int) -> list[tuple[int, int]]:
    """(position, position in the other set) of the first `own` images whose group reaches beyond them."""
    beyond: dict[int, int] = {}
    for position in range(own, len(first)):
        beyond.setdefault(int(first[position]), position)
    return [(i, beyond[group]) for i, group in enumerate(first[:own].tolist()) if group in beyond]
