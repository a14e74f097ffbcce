"""Which frequencies the features of each block hold."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sslkit.core.console import counted
from sslkit.core.errors import UserError
from sslkit.frequency import power_spectrum, radial_profile
from sslkit.models.encoder import Encoder
from sslkit.visualization.figures.style import COLOURS, MARGIN, Sheet

PLOT, WIDE = 2.9, 4.2
SMALLEST = 4
"""Cells a side below which there is nothing between the lowest and the highest frequency."""


def block_count(encoder: Encoder) -> int:
    """Blocks of a ViT, levels of another model that gives maps."""
    model = encoder.model
    return len(model.blocks) if encoder.family == "vit" else len(model.feature_info)


def block_maps(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """What leaves each block of a ViT, or each level of another model: [B, C, h, w] each.

    Raises:
        UserError: timm has no intermediate maps of this model, or all are too small.
    """
    if not hasattr(encoder.model, "forward_intermediates"):
        raise UserError(f"{encoder.name} gives no maps of its blocks", "take a ViT, ResNet, ConvNeXt or Swin")
    with torch.no_grad():
        maps = encoder.maps(images, range(block_count(encoder)))
    if maps[0].shape[-1] < SMALLEST:
        side = maps[0].shape[-1]
        raise UserError(f"the maps of {encoder.name} are {side} × {side}: too small", "a larger --size")
    return [level for level in maps if min(level.shape[-2:]) >= SMALLEST]


def relative_amplitude(maps: Tensor) -> Tensor:
    """log10 of the amplitude of each ring over that of the zero frequency: [B, C, h, w] → [rings].

    Park and Kim, *How Do Vision Transformers Work?*, ICLR 2022, figure 2; they take the diagonal of the
    plane, here it is the mean over each ring. The amplitude's mean over channels and images comes first.
    """
    amplitude = power_spectrum(maps).sqrt().mean((0, 1))  # [h, w]
    profile = radial_profile(amplitude).clamp_min(1e-20)
    return (profile / profile[0]).log10()


def layers(profiles: Sequence[Tensor], name: str, unit: str, count: int, total: int) -> Figure:
    """Relative log amplitude over the frequency for every block, and at the highest one over the depth.

    profiles: `relative_amplitude` of each, the first one first. unit: "block" or "level". count: images.
    total: how many blocks or levels there are; the last ones may be too small for a profile.
    """
    sheet = Sheet(
        MARGIN + 2 * WIDE + 2.1, PLOT + 1.6, f"Frequencies in the {unit}s of {name}",
        f"log₁₀ amplitude relative to the zero frequency, mean over channels and {counted(count, 'image')}"
        + (f"; {unit}s above {len(profiles)} of {total} are too small" if total > len(profiles) else ""),
    )  # fmt: skip
    axes = sheet.plot(
        MARGIN + 0.45, 1.0, WIDE, PLOT, "frequency, share of the highest", "relative log amplitude",
        f"Every {unit}",
    )  # fmt: skip
    # Not to the end: yellow can't be seen on white.
    shades = mpl.colors.ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.88, 256)))
    colours = shades(np.linspace(0, 1, len(profiles)))
    for profile, colour in zip(profiles, colours, strict=True):
        axes.plot(np.linspace(0, 1, len(profile)), profile.cpu().numpy(), color=colour, linewidth=1.4)
    bar = mpl.cm.ScalarMappable(mpl.colors.Normalize(1, max(len(profiles), 2)), shades)
    drawn = sheet.colour_bar(bar, MARGIN + 0.55 + WIDE, 1.0, PLOT, unit)
    drawn.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _highest(sheet, profiles, unit)
    return sheet.figure


def _highest(sheet: Sheet, profiles: Sequence[Tensor], unit: str) -> None:
    """At the highest frequency: rising is a block that sharpens, falling one that smooths."""
    left, title = MARGIN + WIDE + 1.95, "At the highest frequency"
    axes = sheet.plot(left, 1.0, WIDE - 0.35, PLOT, unit, "relative log amplitude", title)
    last = [float(profile[-1]) for profile in profiles]
    axes.plot(range(1, len(last) + 1), last, "o-", color=COLOURS[0], markersize=4, linewidth=1.6)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
