"""What features distinguish: the first components of the patches of several images, as colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sslkit.core.errors import UserError
from sslkit.models.encoder import Encoder
from sslkit.visualization.figures.style import CELL, LINE, ROW, Sheet, column

_CELLS = 12
"""A CNN's map is taken from the deepest level with this many cells a side, if there is one."""
COMPONENTS = 3
_COLUMNS = ("image", "components 1, 2, 3", "component 1", "foreground")
TOP, GREY = 0.85, 0.93


@dataclass(frozen=True)
class Components:
    """Of B feature maps of h × w cells, taken together."""

    colours: Tensor  # [B, 3, h, w] in [0, 1]: the first three components of all cells
    first: Tensor  # [B, h, w]: the first component, positive in the foreground
    foreground: Tensor  # [B, 3, h, w] in [0, 1]: the first three components of the foreground's cells alone
    explained: float  # share of the variance in the first three


def feature_maps(encoder: Encoder, images: Tensor) -> tuple[Tensor, str]:
    """Maps [B, C, h, w] to look at, and where they come from. Raises UserError for a model without maps."""
    with torch.no_grad():
        if encoder.family == "cnn" and hasattr(encoder.model, "forward_intermediates"):
            levels = encoder.maps(images, range(len(encoder.model.feature_info)))
            fine = [number for number, level in enumerate(levels) if level.shape[-1] >= _CELLS] or [0]
            return levels[fine[-1]], f"level {fine[-1] + 1} of {len(levels)}"
        return encoder.maps(images)[0], "last layer"


def components(maps: Tensor) -> Components:
    """Principal components of all cells of all maps together: float [B, C, h, w], C >= 3.

    As in DINOv2 (Oquab et al., 2023, section 7.6): the first component is cut at zero, the side of the
    foreground analysed again, and three components become red, green and blue. A component's sign means
    nothing, so it is fixed: for the first one the rim of the images is background, as most subjects stand in
    the middle; for the others the largest loading is positive.
    """
    count, width, rows, columns = maps.shape
    if width < COMPONENTS:
        raise UserError(f"{width} channels: at least {COMPONENTS} expected for colours")
    cells = maps.permute(0, 2, 3, 1).reshape(-1, width).double().cpu()
    projected, variance = principal_components(cells, COMPONENTS)
    first = projected[:, 0].reshape(count, rows, columns)
    if _rim(first) > first.mean():
        first, projected[:, 0] = -first, -projected[:, 0]
    chosen = (first > 0).flatten()
    colours = torch.full_like(projected, GREY)
    if int(chosen.sum()) > COMPONENTS:
        colours[chosen] = _as_colours(principal_components(cells[chosen], COMPONENTS)[0])

    def pictures(values: Tensor) -> Tensor:
        return values.reshape(count, rows, columns, COMPONENTS).permute(0, 3, 1, 2).float()

    share = float(variance[:COMPONENTS].sum() / variance.sum().clamp_min(1e-30))
    return Components(pictures(_as_colours(projected)), first.float(), pictures(colours), share)


def principal_components(cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cells [N, D] on the first axes [N, count], and the variance on all axes, descending.

    The largest loading of each axis is positive.
    """
    centred = cells - cells.mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(cells))
    loadings = axes.flip(1)[:, :count]
    largest = loadings.gather(0, loadings.abs().argmax(0, keepdim=True))
    return centred @ (loadings * largest.sign()), variance.flip(0).clamp_min(0)


def _rim(first: Tensor) -> Tensor:
    """The mean over the outermost cells."""
    inner = torch.zeros(first.shape[1:], dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    return first[:, ~inner].mean()


def _as_colours(projected: Tensor) -> Tensor:
    """Each component stretched to [0, 1] between its 1st and 99th percentile: [N, 3]."""
    low, high = (torch.quantile(projected, share, dim=0) for share in (0.01, 0.99))
    return ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def pca(images: Tensor, found: Components, name: str, origin: str) -> Figure:
    """Image, three components as colours, the first one, and the foreground's own three.

    images: float [B, 3, H, W] in [0, 1]. origin: of the maps, as `feature_maps` says it.
    """
    side = found.first.shape[-1]
    sheet = Sheet(
        column(len(_COLUMNS)) + 0.95, TOP + len(images) * ROW + 0.2, f"Components of {name}",
        f"{origin}, {found.first.shape[-2]} × {side} cells · "
        f"{found.explained:.0%} of the variance in three components",
    )  # fmt: skip
    reach = float(found.first.abs().quantile(0.99)) or 1.0
    for row, image in enumerate(images):
        top = TOP + row * ROW + LINE
        sheet.picture(column(0), top, image, _COLUMNS[0])
        sheet.picture(column(1), top, found.colours[row], _COLUMNS[1])
        signed = (-reach, reach)
        drawn = sheet.picture(column(2), top, found.first[row], _COLUMNS[2], cmap="RdBu_r", limits=signed)
        sheet.picture(column(3), top, found.foreground[row], _COLUMNS[3])
    bar = sheet.colour_bar(drawn, column(4) + 0.04, TOP + LINE, CELL, "component 1")
    bar.set_ticks([-reach, 0, reach], labels=["−", "0", "+"])
    return sheet.figure
