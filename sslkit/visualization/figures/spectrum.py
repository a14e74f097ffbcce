"""An image and its two halves, in space and in frequency; and how power falls with frequency."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sslkit.frequency import high_pass, low_pass
from sslkit.frequency.measures import log_magnitude, power_law, ring_centres, ring_power
from sslkit.visualization.figures.style import (
    CELL,
    COLOURS,
    DASHED,
    GAP,
    INK,
    LINE,
    MARGIN,
    Sheet,
    column,
    format_number,
    legend,
    logarithmic,
    mark_radius,
)

_COLUMNS = ("original", "low-pass", "high-pass, clamped", "high-pass, signed")
_BLOCK = len(_COLUMNS) * (CELL + GAP) + 0.12  # width of one image's group
_PAIR = 2 * CELL + LINE + 0.16  # height of pictures above their spectra
TOP, PLOT = 0.85, 2.6


def spectrum(images: Tensor, radius: float) -> Figure:
    """Up to four images: original, low-pass, high-pass as a network gets it and signed, above their spectra.

    images: float [B, 3, H, W] in [0, 1], 1 <= B <= 4. Spectra are log-magnitudes on one scale; below them the
    mean radial power with the cut at `radius` and the power law that fits the originals.
    """
    images = images[:4]
    groups = min(len(images), 2)
    rows = math.ceil(len(images) / 2)
    sheet = Sheet(
        MARGIN + groups * _BLOCK + 0.75,
        TOP + rows * _PAIR + PLOT + 0.75,
        f"Spectra, cut at radius {format_number(radius)}",
        f"{images.shape[-1]} × {images.shape[-2]} px · signed: channel mean, blue negative, red positive",
    )
    low, high = low_pass(images, radius), high_pass(images, radius)
    variants = (images, low, high.clamp(0, 1), high)
    magnitudes = [log_magnitude(variant) for variant in variants]
    top = float(torch.stack(magnitudes).max())
    for index in range(len(images)):
        left, upper = MARGIN + index % 2 * _BLOCK, TOP + index // 2 * _PAIR + LINE
        reach = float(high[index].mean(0).abs().quantile(0.995)) or 1.0
        for place, (name, variant, magnitude) in enumerate(zip(_COLUMNS, variants, magnitudes, strict=True)):
            x = column(place, left)
            if name == "high-pass, signed":
                sheet.picture(x, upper, variant[index].mean(0), name, cmap="RdBu_r", limits=(-reach, reach))
            else:
                sheet.picture(x, upper, variant[index], name)
            drawn = sheet.picture(x, upper + CELL + 0.05, magnitude[index], cmap="viridis", limits=(0, top))
    bar = MARGIN + groups * _BLOCK
    sheet.colour_bar(drawn, bar, TOP + LINE + CELL + 0.05, CELL, "log₁₀(1 + |F|)")
    _radial(sheet, TOP + rows * _PAIR + 0.25, groups * _BLOCK - 0.3, variants[:3], radius)
    return sheet.figure


def _radial(sheet: Sheet, top: float, width: float, variants: tuple[Tensor, ...], radius: float) -> None:
    """Radial power of original, low-pass and clamped high-pass, means over the images, log-log.

    Ring 0 holds the mean grey alone and is left out.
    """
    x, y = "frequency, cycles per image", "power |F|², ring mean"
    axes = sheet.plot(MARGIN + 0.45, top, width, PLOT, x, y, "Radial power")
    profiles = [ring_power(variant).mean(0) for variant in variants]
    frequency = ring_centres(len(profiles[0]))
    for name, profile, colour in zip(_COLUMNS, profiles, COLOURS, strict=False):
        wide = 3.5 if name == "original" else 1.4  # the low-pass lies on it below r, and both must be seen
        axes.plot(frequency[1:], profile[1:].numpy(), color=colour, linewidth=wide, label=name)
    scale, exponent = power_law(profiles[0])
    fit = scale * frequency[1:] ** -exponent
    named = rf"fit, $1/f^{{{exponent:.2f}}}$"
    axes.plot(frequency[1:], fit, color=INK, linewidth=1, linestyle=DASHED, label=named)
    mark_radius(axes, radius)
    logarithmic(axes)
    axes.set_yscale("log")
    floor = max(float(profiles[0].min()), 1e-12)  # images of one colour have no power but at zero
    axes.set_ylim(floor / 10, max(float(profiles[0][1:].max()), floor) * 2)
    legend(axes)
