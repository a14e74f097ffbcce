"""What the network predicts from a corrupted image, in space and in frequency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sslkit.frequency.measures import log_magnitude, psnr, ring_centres, ring_error
from sslkit.visualization.figures.style import (
    CELL,
    COLOURS,
    DASHED,
    GAP,
    LINE,
    MARGIN,
    MUTED,
    TEXT,
    Sheet,
    column,
    format_number,
    legend,
    logarithmic,
    mark_radius,
)

_COLUMNS = ("corrupted", "prediction", "composite", "error")
HALVES = ("low frequencies given, high predicted", "high frequencies given, low predicted")
_PAIR = 2 * CELL + LINE + 0.16
TOP, PLOT = 1.1, 2.2
MEAN_AT = 0.6  # where the error of the mean colour stands, left of all frequencies
START = MARGIN + CELL + 0.26
_BLOCK = len(_COLUMNS) * (CELL + GAP) + 0.18


def reconstruction(panels: Mapping[str, Tensor], tasks: Sequence[str], radius: float | None) -> Figure:
    """Each image once, then for every task: corrupted, prediction, composite, error; each above its spectrum.

    panels: of `MFM.panels` on a batch that holds the same N images once for each of the T tasks, in their
    order: "image", "corrupted", "prediction", "composite", float [T N, 3, H, W] in [0, 1]. The composite
    puts predicted bins beside the given ones: these are never supervised, so the raw prediction is free to
    be anything there. The error is the composite's; PSNR stands in the titles.
    tasks: their names, `HALVES` for masked frequencies. radius: the cut between the halves, if there is one.
    """
    images = panels["image"]
    count = len(images) // len(tasks)
    title, told = "Reconstructions", "all frequencies are predicted"
    if radius is not None:
        title += f", radius {format_number(radius)}"
        told = "composite = given and predicted bins together"
    sheet = Sheet(
        START + len(tasks) * _BLOCK + 0.55,
        TOP + count * _PAIR + PLOT + 0.95,
        title,
        f"error and PSNR against the input; {told}",
    )
    error = (panels["composite"] - images).abs().mean(1)
    shown = {**panels, "error": error}
    limit = max(float(error.quantile(0.995)), 1e-3)
    spectra = {name: log_magnitude(panels[name]) for name in ("image", *_COLUMNS[:3])}
    spectra["error"] = log_magnitude(panels["composite"] - images)
    top = float(torch.stack(list(spectra.values())).max())
    for task, name in enumerate(tasks):
        sheet.write(START + task * _BLOCK + 2 * CELL, TOP - 0.1, name, size=TEXT, align="center")
    for index in range(len(images)):
        upper = TOP + index % count * _PAIR + LINE
        lower = upper + CELL + 0.05
        if index < count:
            sheet.picture(MARGIN, upper, images[index], "input")
            sheet.picture(MARGIN, lower, spectra["image"][index], cmap="viridis", limits=(0, top))
        for place, name in enumerate(_COLUMNS):
            left = column(place, START + index // count * _BLOCK)
            title = name
            if name != "error":
                ratio = psnr(images[index : index + 1], panels[name][index : index + 1])
                title += f" {float(ratio):.1f} dB"
            heat = sheet.picture(left, upper, shown[name][index], title, cmap="inferno", limits=(0, limit))
            drawn = sheet.picture(left, lower, spectra[name][index], cmap="viridis", limits=(0, top))
    edge = START + len(tasks) * _BLOCK - 0.1
    sheet.colour_bar(heat, edge, TOP + LINE, CELL, "|error|")
    sheet.colour_bar(drawn, edge, TOP + LINE + CELL + 0.05, CELL, "log₁₀(1 + |F|)")
    _errors(sheet, TOP + count * _PAIR + 0.45, images, panels["composite"], tasks, radius)
    return sheet.figure


def _errors(
    sheet: Sheet, top: float, images: Tensor, composite: Tensor, tasks: Sequence[str], radius: float | None
) -> None:
    """Error of the composite relative to the image, ring by ring, for every task.

    Ring 0 is the mean colour, which has no place on an axis of frequencies: a point beside it.
    """
    axes = sheet.plot(
        MARGIN + 0.45, top, len(tasks) * _BLOCK + 0.6, PLOT,
        "frequency, cycles per image", "|error| / |image|", "Relative error of the composite, by frequency",
    )  # fmt: skip
    pairs = zip(images.chunk(len(tasks)), composite.chunk(len(tasks)), strict=True)
    for name, colour, (clean, rebuilt) in zip(tasks, COLOURS, pairs, strict=False):
        error = ring_error(clean, rebuilt).cpu().numpy()
        frequency = ring_centres(len(error))
        axes.plot(frequency[1:], error[1:], color=colour, linewidth=1.6, label=name)
        axes.plot(MEAN_AT, error[0], color=colour, marker="o", markersize=4, clip_on=False)
    axes.axhline(1, color=MUTED, linewidth=1, linestyle=DASHED, label="predicting nothing")
    if radius is not None:
        mark_radius(axes, radius)
    logarithmic(axes)
    axes.set_xlim(MEAN_AT * 0.85, None)
    ticks = [tick for tick in axes.xaxis.get_major_locator()() if 1 <= tick <= len(frequency)]
    axes.set_xticks([MEAN_AT, *ticks], ["mean", *map(format_number, ticks)])
    axes.set_ylim(0, None)
    legend(axes)
