"""The mask families of `sslkit.frequency`, and the two parts that each makes of an image."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from torch import Tensor

from sslkit.frequency import (
    apply_mask,
    band,
    butterworth,
    disc,
    full_mask,
    gaussian,
    kept_bins,
    rhombus,
    square,
    strongest,
)
from sslkit.frequency.measures import log_magnitude
from sslkit.visualization.figures.style import CELL, GAP, LINE, MARGIN, Sheet, column, format_number, ring

_ROWS = ("mask", "kept", "left out")
_COLUMNS = 4
REACH = 3  # radii from the centre to the edge of a mask's picture: at 224 px a whole plane shows only dots
TOP, START = 0.95, MARGIN + 0.22
_BLOCK = LINE + len(_ROWS) * (CELL + GAP) + 0.27  # height of a family with its name


def families(image: Tensor, radius: float) -> Figure:
    """Each mask family at `radius` above the part of an image that it keeps and the part that is left.

    image: float [3, H, W] in [0, 1]. The band reaches to twice the radius, the adaptive mask keeps as many
    bins as the disc. A part without the zero frequency has zero mean and is shown around middle grey.
    """
    height, width = image.shape[-2:]
    sheet = Sheet(
        column(_COLUMNS, START) + MARGIN - GAP,
        TOP + 2 * _BLOCK - 0.1,
        f"Mask families at radius {format_number(radius)}",
        f"centre: zero frequency · circle: r · parts of zero mean: + ½ · {width} × {height} px",
    )
    for top in (TOP, TOP + _BLOCK):
        for row, name in enumerate(_ROWS):
            sheet.write(MARGIN, _row(top, row) + CELL / 2, name, weight="bold", rotation=90, align="center")
    made = family_masks(image, radius)
    for place, (name, mask) in enumerate(made.items()):
        _family(sheet, *_place(place), image, radius, name, mask)
    _photo(sheet, *_place(len(made)), image, radius)
    return sheet.figure


def family_masks(image: Tensor, radius: float) -> dict[str, Tensor]:
    """Half-plane masks [H, W // 2 + 1], float32, by the names of their functions."""
    height, width = image.shape[-2:]
    low = disc(height, width, radius)
    share = float(kept_bins(low, width)) / (height * width)
    made = {
        "disc": low,
        "square": square(height, width, radius),
        "rhombus": rhombus(height, width, radius),
        "band": band(height, width, radius, 2 * radius),
        "gaussian": gaussian(height, width, radius),
        "butterworth": butterworth(height, width, radius),
        "strongest": strongest(image[None], share)[0, 0],
    }
    return {name: mask.float() for name, mask in made.items()}


def _family(
    sheet: Sheet, left: float, top: float, image: Tensor, radius: float, name: str, mask: Tensor
) -> None:
    height, width = image.shape[-2:]
    bins = float(kept_bins(mask, width))
    sheet.write(left + CELL / 2, top - LINE, name, weight="bold", align="center")
    title = f"{bins:,.0f} bins, {bins / (height * width):.1%}"
    _plane(sheet, left, top, full_mask(mask, width), radius, title, "gray", (0.0, 1.0))
    kept = apply_mask(image[None], mask)[0]
    mean_kept = float(mask[0, 0])
    sheet.picture(left, _row(top, 1), kept + (1 - mean_kept) / 2)
    sheet.picture(left, _row(top, 2), image - kept + mean_kept / 2)


def _photo(sheet: Sheet, left: float, top: float, image: Tensor, radius: float) -> None:
    """The image itself below its spectrum, where an adaptive mask finds its bins."""
    magnitude = log_magnitude(image[None])[0]
    sheet.write(left + CELL / 2, top - LINE, "the image", weight="bold", align="center")
    limits = (float(magnitude.min()), float(magnitude.max()))
    _plane(sheet, left, top, magnitude, radius, "log₁₀(1 + |F|)", "viridis", limits)
    sheet.picture(left, _row(top, 1), image)


def _plane(
    sheet: Sheet, left: float, top: float, plane: Tensor, radius: float, title: str, cmap: str,
    limits: tuple[float, float],
) -> None:  # fmt: skip
    """The middle of a centred plane [H, W], with a circle at the radius."""
    y, x = (side // 2 for side in plane.shape)
    reach = min(math.ceil(REACH * radius), y, x)
    middle = plane[y - reach : y + reach + 1, x - reach : x + reach + 1]
    ring(sheet.picture(left, top, middle, title, cmap=cmap, limits=limits), reach, reach, radius)


def _place(index: int) -> tuple[float, float]:
    """Left and top of a family's mask."""
    return column(index % _COLUMNS, START), TOP + index // _COLUMNS * _BLOCK + LINE


def _row(top: float, row: int) -> float:
    return top + row * (CELL + GAP)
