"""What reaches the network: originals, the random views a worker makes of them, and the corrupted inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sslkit.visualization.figures.style import CELL, GAP, LINE, MARGIN, MUTED, ROW, Sheet


def views(
    originals: Sequence[Image.Image], made: Tensor, inputs: Tensor, captions: Sequence[Sequence[str]]
) -> Figure:
    """One row per image: the original, then per epoch a view and the input made of it.

    originals: RGB, any size. made, inputs: float [B, V, 3, H, W] in [0, 1], V views of each image.
    captions: for each of the V epochs and B images what was done to the input, e.g. "low kept".
    """
    count = made.shape[1]
    pair = 2 * CELL + GAP + 0.18
    start = MARGIN + CELL + 0.26
    sheet = Sheet(
        start + count * pair - 0.18 + MARGIN,
        1.1 + len(originals) * ROW + 0.15,
        "What the network is given",
        "a new random view in every epoch, and what is left of it",
    )
    for epoch in range(count):
        left = start + epoch * pair
        sheet.write(left + CELL + GAP / 2, 0.95, f"epoch {epoch + 1}", align="center", colour=MUTED)
    for row, original in enumerate(originals):
        top = 1.05 + row * ROW + LINE
        _original(sheet, top, original)
        for epoch in range(count):
            left = start + epoch * pair
            sheet.picture(left, top, made[row, epoch], "view")
            sheet.picture(left + CELL + GAP, top, inputs[row, epoch], f"input: {captions[epoch][row]}")
    return sheet.figure


def _original(sheet: Sheet, top: float, original: Image.Image) -> None:
    """The whole original, at its own aspect."""
    shown = original.copy()
    shown.thumbnail((512, 512))
    pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1) / 255
    sheet.picture(MARGIN, top, pixels, f"original {original.width} × {original.height}")
