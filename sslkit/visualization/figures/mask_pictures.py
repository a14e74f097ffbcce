"""Which bins a radius keeps, and what an image looks like with only those."""

from __future__ import annotations

from matplotlib.figure import Figure
from torch import Tensor

from sslkit.frequency import apply_mask, band, disc, full_mask, kept_bins
from sslkit.visualization.figures.style import CELL, LINE, MARGIN, SMALL, Sheet, column, format_number, ring

_ROWS = {"low-pass": "below r", "high-pass": "from r up", "band-pass": "from r to 2 r"}
_TOP = 1.0


def masks(image: Tensor, radius: float) -> Figure:
    """Low-, high- and band-pass masks for ½, 1, 2 and 4 times `radius`, each above the filtered image.

    image: float [3, H, W] in [0, 1]. Titles hold the number of bins kept and their share of the plane.
    High- and band-pass images have zero mean and are shown around middle grey.
    """
    radii = [radius * factor for factor in (0.5, 1, 2, 4)]
    pair = 2 * CELL + LINE + 0.16  # a mask and its image
    start = MARGIN + 0.35
    sheet = Sheet(
        column(len(radii), start) + MARGIN - 0.08,
        _TOP + len(_ROWS) * pair + 0.15,
        f"Frequency masks around radius {format_number(radius)}",
        f"kept bins white, zero frequency in the centre · {image.shape[-1]} × {image.shape[-2]} px",
    )
    for index, own in enumerate(radii):
        middle = column(index, start) + CELL / 2
        weight = "bold" if own == radius else "normal"
        sheet.write(middle, _TOP - 0.05, f"r = {format_number(own)}", align="center", weight=weight)
    for row, (kind, reach) in enumerate(_ROWS.items()):
        top = _TOP + row * pair + LINE
        note = "filtered" if kind == "low-pass" else "filtered, + ½"
        sheet.write(MARGIN - 0.02, top + CELL / 2, kind, weight="bold", rotation=90, align="center")
        sheet.write(MARGIN + 0.18, top + CELL / 2, reach, size=SMALL, rotation=90, align="center")
        sheet.write(MARGIN + 0.18, top + 1.5 * CELL + 0.05, note, size=SMALL, rotation=90, align="center")
        for index, own in enumerate(radii):
            _pair(sheet, column(index, start), top, image, kind, own)
    return sheet.figure


def half_mask(kind: str, height: int, width: int, radius: float) -> Tensor:
    """The half-plane mask of one row of the gallery; a band reaches from `radius` to twice that."""
    if kind == "band-pass":
        return band(height, width, radius, 2 * radius)
    low = disc(height, width, radius)
    return low if kind == "low-pass" else ~low


def _pair(sheet: Sheet, left: float, top: float, image: Tensor, kind: str, radius: float) -> None:
    height, width = image.shape[-2:]
    mask = half_mask(kind, height, width, radius)
    bins = int(kept_bins(mask, width))
    title = f"{bins:,} bins, {bins / (height * width):.1%}"
    drawn = sheet.picture(left, top, full_mask(mask, width).float(), title, cmap="gray")
    for edge in (radius, 2 * radius) if kind == "band-pass" else (radius,):
        ring(drawn, width // 2, height // 2, edge)
    offset = 0.0 if kind == "low-pass" else 0.5
    sheet.picture(left, top + CELL + 0.05, apply_mask(image[None], mask.float())[0] + offset)
