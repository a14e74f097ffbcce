"""Which parts of an image are hidden: masks on the device, keyed by image, and pictures of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslkit.core import rng
from sslkit.core.errors import UserError


def shuffled(seed: int, epoch: int, index: Tensor, count: int, stream: str) -> Tensor:
    """0 … count - 1 in an order of its own for every image, int64 [B, count]; keyed as `core.rng.uniform`."""
    draws = index[:, None] * count + torch.arange(count, device=index.device)
    return rng.uniform(seed, epoch, draws, stream).argsort(dim=1, stable=True)


def random_share(
    index: Tensor, seed: int, epoch: int, grid: tuple[int, int], share: float, stream: str
) -> Tensor:
    """bool [B, h, w], True = hidden: of each image `hidden_count` cells of the grid, wherever they fall."""
    count = grid[0] * grid[1]
    hidden = shuffled(seed, epoch, index, count, stream) < hidden_count(count, share)
    return hidden.reshape(-1, *grid)


def hidden_count(cells: int, share: float) -> int:
    """How many cells are hidden, rounded up as in SimMIM's official code: 22 of 36 at 0.6."""
    return math.ceil(cells * share)


def squares(size: int, unit: int, patch: int, share: float) -> tuple[int, int]:
    """Rows and columns of squares of `unit` pixels in an image, by the settings `unit` and `mask_ratio`.

    Raises:
        UserError: they don't fill it, cut through patches, or are all hidden.
    """
    if size % unit or unit % patch:
        fits = [side for side in range(patch, size // 2 + 1, patch) if size % side == 0]
        nearest = min(fits, key=lambda side: abs(side - unit), default=0)
        cure = f"try -s method.unit={nearest}" if fits else "larger images"
        problem = f"method.unit: {unit} must divide the image ({size} px) and be a multiple of the patch"
        raise UserError(f"{problem} ({patch} px)", cure)
    count = (size // unit) ** 2
    if hidden_count(count, share) == count:
        problem = f"method.unit: {unit} px at mask_ratio {share} hides all {count} of {size} px"
        raise UserError(problem, "smaller squares or a smaller share: nothing is left to predict from")
    return size // unit, size // unit


def repeat_mask(mask: Tensor, times: int) -> Tensor:
    """Every cell of a mask [B, h, w] as times × times cells: [B, times · h, times · w]."""
    return mask.repeat_interleave(times, 1).repeat_interleave(times, 2)


def masked_panels(images: Tensor, hidden: Tensor, prediction: Tensor) -> dict[str, Tensor]:
    """Image, visible parts, prediction, and the composite of visible and predicted parts, in [0, 1].

    Visible parts are never supervised, so the raw prediction is free to be anything there.

    Args:
        images, prediction: float [B, 3, H, W], in [0, 1] and of any values.
        hidden: bool [B, 1, H, W].
    """
    prediction = prediction.clamp(0, 1)
    return {
        "image": images,
        "visible": images.masked_fill(hidden, 0.5),
        "prediction": prediction,
        "composite": torch.where(hidden, prediction, images),
    }
