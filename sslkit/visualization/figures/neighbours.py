"""Which images a model takes for alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from sslkit.core.console import counted
from sslkit.visualization.figures.style import (
    CELL,
    COLOURS,
    GAP,
    INK,
    LINE,
    MARGIN,
    MUTED,
    RULE,
    SMALL,
    Sheet,
    beginning,
    column,
)

RIGHT, WRONG = COLOURS[0], COLOURS[1]
_LETTERS = 17
"""Of a class that fit below a picture."""
_TOP = 0.85


@dataclass(frozen=True)
class Neighbour:
    """One image in a row."""

    picture: Tensor  # [3, S, S] in [0, 1]
    label: str  # "" where it has none
    cosine: float


def neighbours(
    queries: Sequence[Neighbour], found: Sequence[Sequence[Neighbour]], name: str, gallery: int
) -> Figure:
    """Each query, then its nearest images, most similar first, with the cosine of centred features.

    found: as many for each query. With labels, ✓ and a blue frame: the query's class; ✗ and an orange one:
    another. gallery: among how many images they were found.
    """
    labelled = any(query.label for query in queries)
    row = CELL + LINE + (0.28 if labelled else 0.06)
    count = max((len(line) for line in found), default=0)
    sheet = Sheet(
        max(MARGIN + 0.2 + (count + 1) * (CELL + GAP) + MARGIN, 5.8),
        _TOP + len(queries) * row + 0.15,
        f"Nearest neighbours in {name}",
        f"among {counted(gallery, 'image')}, cosine of centred features" + _hits(queries, found, labelled),
    )
    for line, (query, others) in enumerate(zip(queries, found, strict=True)):
        top = _TOP + line * row + LINE
        sheet.picture(MARGIN, top, query.picture, "query")
        _name(sheet, MARGIN, top, query.label)
        for place, other in enumerate(others, 1):
            _neighbour(sheet, column(place) + 0.2, top, other, query.label)
    return sheet.figure


def _neighbour(sheet: Sheet, left: float, top: float, other: Neighbour, wanted: str) -> None:
    judged = bool(wanted and other.label)
    right = other.label == wanted
    mark = (" ✓" if right else " ✗") if judged else ""
    frame = (RIGHT if right else WRONG, 2.2) if judged else (RULE, 0.6)
    sheet.picture(left, top, other.picture, f"{_cosine(other.cosine)}{mark}", frame=frame)
    _name(sheet, left, top, other.label, INK if right else MUTED)


def _cosine(value: float) -> str:
    """Features that all point one way still differ: by how much, where three digits would not show it."""
    return (
        f"{value:.3f}" if value < 0.9995 or value > 1 - 1e-6 else f"1 − {1 - value:.0e}".replace("e-0", "e-")
    )


def _name(sheet: Sheet, left: float, top: float, label: str, colour: str = INK) -> None:
    short = beginning(label, _LETTERS)
    sheet.write(left + CELL / 2, top + CELL + 0.17, short, size=SMALL, colour=colour, align="center")


def _hits(queries: Sequence[Neighbour], found: Sequence[Sequence[Neighbour]], labelled: bool) -> str:
    if not labelled:
        return ""
    pairs = [
        (q.label, o.label)
        for q, line in zip(queries, found, strict=True)
        for o in line
        if q.label and o.label
    ]
    return f" · {sum(a == b for a, b in pairs)} of {len(pairs)} of the same class"
