"""Where a vision transformer looks, and how far."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sslkit.visualization.figures.attention_maps import AttentionMaps
from sslkit.visualization.figures.style import (
    CELL,
    COLOURS,
    DASHED,
    LINE,
    MARGIN,
    MUTED,
    ROW,
    Sheet,
    column,
    legend,
)

_HEADS = 6
"""Heads shown; a base ViT has twice as many."""
TOP, PLOT = 0.85, 2.2


def attention(images: Tensor, maps: AttentionMaps, name: str) -> Figure:
    """Each image, its rollout and the heads of the last block; below, the distance of every block's heads.

    images: float [B, 3, H, W] in [0, 1], the images of `maps`.
    """
    heads = maps.heads.shape[1]
    shown = min(heads, _HEADS)
    query = "class token" if maps.from_class_token else "mean over all patches"
    left_out = "" if shown == heads else f" · {shown} of {heads} heads"
    across = max(column(shown + 2), 6.2)
    sheet = Sheet(
        across + 0.95, TOP + len(images) * ROW + PLOT + 1.1, f"Attention of {name}",
        f"heads of the last block, query: {query}{left_out}",
    )  # fmt: skip
    for row, image in enumerate(images):
        top = TOP + row * ROW + LINE
        sheet.picture(MARGIN, top, image, "image")
        pictures = [("rollout", maps.rollout[row])]
        pictures += [(f"head {head + 1}", maps.heads[row, head]) for head in range(shown)]
        for place, (title, weights) in enumerate(pictures, 1):
            scaled = weights / weights.max()
            drawn = sheet.picture(column(place), top, scaled, title, cmap="inferno")
    sheet.colour_bar(drawn, column(shown + 2) + 0.04, TOP + LINE, CELL, "share of the largest")
    _distances(sheet, TOP + len(images) * ROW + 0.45, across - 0.6, maps)
    return sheet.figure


def _distances(sheet: Sheet, top: float, width: float, maps: AttentionMaps) -> None:
    """A dot for every head of every block, the mean over heads as a line."""
    title = "How far heads look: mean distance of query and key patch"
    axes = sheet.plot(MARGIN + 0.45, top, width, PLOT, "block", "distance, pixels", title)
    blocks = np.arange(1, len(maps.distance) + 1)
    for head in range(maps.distance.shape[1]):
        label = "head" if head == 0 else None
        axes.plot(blocks, maps.distance[:, head], "o", color=COLOURS[5], markersize=4, label=label)
    axes.plot(blocks, maps.distance.mean(1), color=COLOURS[0], linewidth=1.6, label="mean over heads")
    everywhere = {"color": MUTED, "linewidth": 1.0, "linestyle": DASHED}
    axes.axhline(maps.uniform, **everywhere, label="everywhere alike")  # type: ignore[arg-type]
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set_ylim(0, 1.15 * max(float(maps.distance.max()), maps.uniform))
    legend(axes)
