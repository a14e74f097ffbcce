"""What is to be predicted of an image: its patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def patches(images: Tensor, patch: int, normalised: bool) -> Tensor:
    """Images [B, C, H, W] as patches [B, N, P² C]; `normalised`: each at mean 0 and variance 1.

    MAE (He et al., CVPR 2022), table 1d; official: --norm_pix_loss.
    """
    pixels = patchify(images, patch)
    if not normalised:
        return pixels
    mean, deviation = patch_statistics(pixels)
    return (pixels - mean) / deviation


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] → [B, N, P · P · C]: patches in raster order; in each row, column, channel (fastest)."""
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches: Tensor, rows: int) -> Tensor:
    """The inverse of `patchify` for images of three channels and so many rows of patches."""
    batch, count, values = patches.shape
    side = math.isqrt(values // 3)
    cells = patches.reshape(batch, rows, count // rows, side, side, 3)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, rows * side, -1)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [B, N, 1] of each patch's values, channels together.

    Official: the variance is the unbiased one, with 1e-6 added before the root.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
