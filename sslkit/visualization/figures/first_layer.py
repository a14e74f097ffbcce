"""What the first layer measures: its kernels, and the frequencies they let through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sslkit.core.errors import UserError
from sslkit.frequency import power_spectrum, radial_profile
from sslkit.models.encoder import Encoder
from sslkit.visualization.figures.style import CELL, COLOURS, LINE, MARGIN, MUTED, SMALL, TEXT, Sheet, legend

_SHOWN = 64
_ACROSS = 8
PLANE = 32
"""Bins a side of a response; a smaller kernel is padded with zeros."""
_SIDE = 3.6  # of a mosaic, inches
_TOP = 0.95
_PLOT = 2.2


@dataclass(frozen=True)
class Filters:
    """Of K kernels over three colours."""

    kernels: Tensor  # [K, 3, k, k], per unit of an image in [0, 1]; the strongest first
    response: Tensor  # [K, n, n]: |FFT|, root mean square over colours, zero frequency at [n // 2, n // 2]
    layer: str


def first_filters(encoder: Encoder) -> Filters:
    """Of the first convolution that sees the image: patch embedding, or a CNN's stem.

    Raises:
        UserError: there is none.
    """
    name, layer = _first_layer(encoder)
    weight = layer.weight.detach().float().cpu()
    kernels = weight / encoder.std.detach().float().cpu()  # the encoder divides by it before
    kernels = kernels[kernels.square().sum((1, 2, 3)).argsort(descending=True, stable=True)]
    return Filters(kernels, frequency_response(kernels), name)


def first_layer_refusal(encoder: Encoder) -> UserError | None:
    """Why the first layer can't be shown, if it can't."""
    try:
        _first_layer(encoder)
    except UserError as problem:
        return problem
    return None


def _first_layer(encoder: Encoder) -> tuple[str, Any]:
    for name, module in encoder.model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            return name, module
    raise UserError(f"{encoder.name} has no convolution that sees the image", "layers shows its blocks")


def frequency_response(kernels: Tensor) -> Tensor:
    """|FFT| of kernels padded with zeros, root mean square over colours: [K, C, k, k] → [K, n, n].

    n is `PLANE`, or k where that is more; the DFT is not normalised, so the response is a gain.
    """
    missing = max(0, PLANE - kernels.shape[-1]), max(0, PLANE - kernels.shape[-2])
    padded = nn.functional.pad(kernels, (0, missing[0], 0, missing[1]))
    pixels = padded.shape[-1] * padded.shape[-2]
    return (power_spectrum(padded) * pixels).mean(1).sqrt()


def filters(found: Filters, name: str) -> Figure:
    """The strongest kernels, each one's frequency response in the same place, and the mean of all."""
    count, _, rows, columns = found.kernels.shape
    shown = min(count, _SHOWN)
    left = MARGIN + _SIDE + 0.35
    sheet = Sheet(
        left + _SIDE + 1.0, _TOP + _SIDE + _PLOT + 1.35, f"First layer of {name}",
        f"{found.layer}, {count} kernels of {rows} × {columns} px"
        + (f", the {shown} strongest shown" if shown < count else ""),
    )  # fmt: skip
    kernels = found.kernels[:shown]
    largest = kernels.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    _mosaic(sheet, MARGIN, 0.5 + 0.5 * kernels / largest, "kernels, each to its largest weight; grey is 0")
    response = found.response[:shown]
    scaled = response / response.amax((1, 2), keepdim=True).clamp_min(1e-12)
    drawn = _mosaic(sheet, left, scaled[:, None], "their responses; zero frequency in the middle")
    sheet.colour_bar(drawn, left + _SIDE + 0.08, _TOP + LINE, CELL, "share of the largest")
    _mean(sheet, found.response)
    return sheet.figure


def _mosaic(sheet: Sheet, left: float, tiles: Tensor, title: str) -> Any:
    """Tiles [K, 3 or 1, h, w] in [0, 1] in rows of eight, with white lines between."""
    rows = -(-len(tiles) // _ACROSS)
    scale = -(-24 // tiles.shape[-1])  # lines between small kernels would be as wide as these
    large = tiles.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    framed = nn.functional.pad(large, (0, 2, 0, 2), value=float("nan"))
    empty = framed.new_full((rows * _ACROSS - len(framed), *framed.shape[1:]), float("nan"))
    grid = torch.cat([framed, empty]).reshape(rows, _ACROSS, *framed.shape[1:])  # [rows, 8, C, h, w]
    plane = grid.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # [H, W, C]
    axes = sheet.axes(left, _TOP + LINE, _SIDE, _SIDE * plane.shape[0] / plane.shape[1])
    axes.set_axis_off()
    axes.set_title(title, fontsize=SMALL, loc="left", pad=3)
    if plane.shape[-1] == 3:
        return axes.imshow(plane.nan_to_num(1.0).numpy(), interpolation="nearest")
    shown = np.ma.masked_invalid(plane[..., 0].numpy())
    return axes.imshow(shown, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")


def _mean(sheet: Sheet, response: Tensor) -> None:
    """The root mean square response of all kernels: over the plane, and over the radius with quartiles."""
    top = _TOP + _SIDE + 0.75
    mean = response.square().mean(0).sqrt()
    axes = sheet.axes(MARGIN + 0.25, top, _PLOT, _PLOT)
    half_bin = 0.5 / len(mean)
    edges = (-0.5 - half_bin, 0.5 - half_bin)  # of an even plane, whose zero frequency is right of the middle
    drawn = axes.imshow(mean.numpy(), cmap="viridis", vmin=0, extent=(*edges, *edges[::-1]))
    axes.set_title("Mean response", fontsize=TEXT, loc="left", pad=5)
    axes.set(xticks=[-0.5, -0.25, 0, 0.25], yticks=[-0.5, -0.25, 0, 0.25])
    axes.tick_params(labelsize=SMALL, colors=MUTED, length=2)
    axes.set_xlabel("cycles per pixel", fontsize=SMALL, color=MUTED)
    axes.spines[:].set(linewidth=0)
    sheet.colour_bar(drawn, MARGIN + 0.25 + _PLOT + 0.08, top, _PLOT, "gain")
    left = MARGIN + _PLOT + 1.5
    plot = sheet.plot(
        left, top, sheet.width - left - 0.35, _PLOT, "frequency, cycles per pixel", "gain", "Over the radius"
    )
    # The last ring is cut by the border of the plane.
    profiles = radial_profile(response.square()).sqrt()[:, :-1]  # [K, rings]
    frequency = (np.arange(profiles.shape[1]) + 0.5) / response.shape[-1]
    frequency[0] = 0.0  # ring 0 holds the zero frequency alone
    low, high = (torch.quantile(profiles, share, dim=0).numpy() for share in (0.25, 0.75))
    plot.fill_between(
        frequency, low, high, color=COLOURS[5], alpha=0.35, linewidth=0, label="middle half of the kernels"
    )
    plot.plot(
        frequency, profiles.square().mean(0).sqrt().numpy(), color=COLOURS[0], linewidth=1.6, label="mean"
    )
    plot.set_ylim(0, None)
    plot.set_xlim(0, 0.5)
    legend(plot)
