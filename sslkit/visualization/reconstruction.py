"""What the network predicts from half a spectrum, in space and in frequency, for both tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sslkit.visualization.measure import log_magnitude, psnr, ring_centres, ring_error
from sslkit.visualization.style import (
    CELL,
    COLOURS,
    GAP,
    LINE,
    MARGIN,
    MUTED,
    TEXT,
    Sheet,
    column,
    legend,
    mark_radius,
    number,
    plain_ticks,
)

COLUMNS = ("corrupted", "prediction", "composite", "error")
TASKS = ("low frequencies given, high predicted", "high frequencies given, low predicted")
PAIR = 2 * CELL + LINE + 0.16
TOP, PLOT = 1.1, 2.2
START = MARGIN + CELL + 0.26
BLOCK = len(COLUMNS) * (CELL + GAP) + 0.18


def reconstruction(panels: Mapping[str, Tensor], radius: float) -> Figure:
    """Each image once, then for both tasks: corrupted, prediction, composite, error; each above its spectrum.

    panels: of `MFM.panels` on a batch that holds the same N images twice: "image", "corrupted", "prediction",
    "composite", float [2 N, 3, H, W] in [0, 1]; the first half of the batch got low frequencies. The
    composite puts predicted bins beside the given ones: these are never supervised, so the raw prediction
    is free to be anything there. The error is the composite's; PSNR stands in the titles.
    """
    images = panels["image"]
    count = len(images) // 2
    sheet = Sheet(
        START + 2 * BLOCK + 0.55,
        TOP + count * PAIR + PLOT + 0.95,
        f"Reconstructions, radius {number(radius)}",
        "composite = given and predicted bins together; error and PSNR against the input",
    )
    error = (panels["composite"] - images).abs().mean(1)
    shown = {**panels, "error": error}
    limit = max(float(error.quantile(0.995)), 1e-3)
    spectra = {name: log_magnitude(panels[name]) for name in ("image", *COLUMNS[:3])}
    spectra["error"] = log_magnitude(panels["composite"] - images)
    top = float(torch.stack(list(spectra.values())).max())
    for task, name in enumerate(TASKS):
        sheet.write(START + task * BLOCK + 2 * CELL, TOP - 0.1, name, size=TEXT, align="center")
    for index in range(2 * count):
        upper = TOP + index % count * PAIR + LINE
        if index < count:
            sheet.picture(MARGIN, upper, images[index], "input")
            sheet.picture(
                MARGIN, upper + CELL + 0.05, spectra["image"][index], cmap="viridis", limits=(0, top)
            )
        for place, name in enumerate(COLUMNS):
            left = column(place, START + index // count * BLOCK)
            title = name if name == "error" else f"{name} {_decibels(images[index], panels[name][index])}"
            heat = sheet.picture(left, upper, shown[name][index], title, cmap="inferno", limits=(0, limit))
            drawn = sheet.picture(
                left, upper + CELL + 0.05, spectra[name][index], cmap="viridis", limits=(0, top)
            )
    edge = START + 2 * BLOCK - 0.1
    sheet.colour_bar(heat, edge, TOP + LINE, CELL, "|error|")
    sheet.colour_bar(drawn, edge, TOP + LINE + CELL + 0.05, CELL, "log₁₀(1 + |F|)")
    _errors(sheet, TOP + count * PAIR + 0.45, images, panels["composite"], radius)
    return sheet.figure


def _errors(sheet: Sheet, top: float, images: Tensor, composite: Tensor, radius: float) -> None:
    """Error of the composite relative to the image, ring by ring, for both tasks."""
    axes = sheet.plot(
        MARGIN + 0.45, top, 2 * BLOCK + 0.6, PLOT, "frequency, cycles per image", "|error| / |image|",
        "Relative error of the composite, by frequency",
    )  # fmt: skip
    for part, name, colour in zip(range(2), TASKS, COLOURS, strict=False):
        half = slice(part * len(images) // 2, (part + 1) * len(images) // 2)
        error = ring_error(images[half], composite[half]).cpu().numpy()
        axes.plot(ring_centres(len(error)), error, color=colour, linewidth=1.6, label=name)
    axes.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="predicting nothing")
    mark_radius(axes, radius)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set_ylim(0, None)
    legend(axes)


def _decibels(image: Tensor, other: Tensor) -> str:
    return f"{float(psnr(image[None], other[None])):.1f} dB"
