"""Views at the size of a curriculum's stage: their low frequencies, by two matrix products on the device."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sslkit.frequency.resampling import spectrum_crop


def fitted_side(side: int, share: float, stride: int) -> int:
    """The side nearest to `share` of a view's that a backbone takes: whole strides, at least two, pixels.

    A view that has its full size, or is smaller than two strides, keeps its side.
    """
    if share >= 1:
        return side
    return min(side, max(2, round(side * share / stride)) * stride)


def shrunk(views: Mapping[str, Tensor], share: float, stride: int) -> dict[str, Tensor]:
    """Every view [B, 3, S, S] at `fitted_side(S, share, stride)` pixels; other tensors as they are.

    `spectrum_crop`, centred on pixels, so that boxes in shares of the sides keep their meaning. Not clamped:
    edges ring by a few per cent beyond [0, 1], as in EfficientTrain. A reconstruction's target is made of
    these.
    """
    small = dict(views)
    for name, view in views.items():
        if view.ndim == 4 and view.is_floating_point():
            side = fitted_side(view.shape[-1], share, stride)
            small[name] = view if side == view.shape[-1] else spectrum_crop(view, side)
    return small
