"""What a method does to images, in its own pictures: views, hidden patches, predictions."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor

from sslkit.visualization.figures.style import LINE, MARGIN, ROW, Sheet, column


def panels(pictures: Mapping[str, Tensor], title: str) -> Figure:
    """One row per image, one column per picture.

    pictures: of `Method.panels`, name → float [N, 3, H, W] in [0, 1].
    """
    count = len(next(iter(pictures.values())))
    sheet = Sheet(column(len(pictures), MARGIN) + MARGIN, 0.75 + count * ROW + 0.15, title)
    for place, (name, images) in enumerate(pictures.items()):
        for row in range(count):
            top = 0.75 + row * ROW + LINE
            sheet.picture(column(place, MARGIN), top, images[row], name.replace("_", " "))
    return sheet.figure
