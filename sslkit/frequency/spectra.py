"""What a spectrum looks like: power over the plane and over the radius."""

from __future__ import annotations

import torch
from torch import Tensor

from sslkit.frequency.devices import full_precision
from sslkit.frequency.filters import check_images
from sslkit.frequency.masks import at_least_float32, full_mask
from sslkit.frequency.transform import rfft2


def power_spectrum(images: Tensor) -> Tensor:
    """|F images|² with the orthonormal DFT: [B, C, H, W] → [B, C, H, W], zero frequency at [H // 2, W // 2].

    Its sum is the image's energy, Σ images² (Parseval). Float32, or float64 for float64 images.
    """
    check_images(images)
    with full_precision(images.device):
        spectrum = rfft2(at_least_float32(images), norm="ortho")
        return full_mask(torch.view_as_real(spectrum).square().sum(-1), images.shape[-1])


def radial_profile(power: Tensor) -> Tensor:
    """The mean power of each ring k <= d < k + 1 around the zero frequency, k = 0 … min(H, W) // 2.

    power: [..., H, W], zero frequency centred, from `power_spectrum`. Returns [..., min(H, W) // 2 + 1].
    Rings end at integers so that a disc of radius r holds exactly rings 0 … r - 1. The corners beyond the
    last ring are left out.
    """
    if power.ndim < 2:
        raise ValueError(f"power has shape {tuple(power.shape)}, expected [..., H, W]")
    height, width = power.shape[-2:]
    rows = torch.arange(height, dtype=torch.float64) - height // 2
    columns = torch.arange(width, dtype=torch.float64) - width // 2
    distance = torch.hypot(rows[:, None], columns)
    ring = (distance + 1e-9).floor().long().flatten()  # the margin keeps 3² + 4² = 5² in ring 5
    rings = min(height, width) // 2 + 1
    sizes = torch.bincount(ring, minlength=rings)[:rings].to(power)
    sums = power.new_zeros(*power.shape[:-2], int(ring.max()) + 1)
    return sums.index_add(-1, ring.to(power.device), power.flatten(-2))[..., :rings] / sizes
