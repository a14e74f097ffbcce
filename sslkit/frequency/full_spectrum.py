"""Losses over every frequency: MFM's baselines (super-resolution, deblurring, denoising), patch-wise, focal.

Same distance as in `losses`; the focal weight is the idea of Jiang et al., ICCV 2021 (arXiv 2012.12821), in
the form that MFM's code has: it multiplies the modulus and not its square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslkit.frequency.devices import full_precision
from sslkit.frequency.losses import FLOOR, check_pair, spectral_error
from sslkit.frequency.masks import at_least_float32, column_weights
from sslkit.frequency.transform import rfft2


def spectral_loss(prediction: Tensor, target: Tensor, gamma: float = 1.0, patches: int = 1) -> Tensor:
    """The mean distance over all frequencies, channels and images; a scalar, 0 for an empty batch.

    prediction, target: float [B, C, H, W]. patches > 1 cuts each side into that many parts, each transformed
    by itself (both sides have to be divisible). gamma = 2 is the mean squared pixel error, by Parseval.
    """
    check_pair(prediction, target, gamma)
    prediction, target = _cut(prediction, patches), _cut(target, patches)
    height, width = prediction.shape[-2:]
    nothing_kept = torch.zeros(height, width // 2 + 1, device=prediction.device)
    everything_scored = torch.ones(len(prediction), dtype=torch.bool, device=prediction.device)
    return spectral_error(prediction, target, everything_scored, nothing_kept, gamma).reduce()


def focal_spectral_loss(
    prediction: Tensor,
    target: Tensor,
    gamma: float = 1.0,
    focus: float = 1.0,
    logarithm: bool = False,
    across_batch: bool = False,
    patches: int = 1,
) -> Tensor:
    """`spectral_loss` in which the frequencies that are wrong most weigh most; a scalar.

    The weight of a bin is |Δ|^focus (then log(1 + ·) with `logarithm`), divided by its largest value in the
    same channel of the same patch, or in the batch with `across_batch`. It passes no gradient.
    """
    check_pair(prediction, target, gamma)
    prediction, target = _cut(prediction, patches), _cut(target, patches)
    if len(prediction) == 0:
        return at_least_float32(prediction).sum()
    with full_precision(prediction.device):
        difference = at_least_float32(prediction) - at_least_float32(target)
        spectrum = torch.view_as_real(rfft2(difference, norm="ortho"))
        power = spectrum.square().sum(-1) + FLOOR
        weight = power.detach().sub(FLOOR).clamp(min=0).pow(focus / 2)
        weight = weight.log1p() if logarithm else weight
        largest = weight.amax() if across_batch else weight.amax((-2, -1), keepdim=True)
        weight = torch.where(largest > 0, weight / largest, 0.0)
        columns = column_weights(difference.shape[-1], difference.device).to(power.dtype)
        return (weight * power.pow(gamma / 2) * columns).sum() / difference.numel()


def _cut(images: Tensor, patches: int) -> Tensor:
    """[B, C, H, W] → [B · patches², C, H / patches, W / patches]."""
    if patches == 1:
        return images
    batch, channels, height, width = images.shape
    if patches < 1 or height % patches or width % patches:
        raise ValueError(f"patches is {patches}, expected a divisor of {height} and {width}")
    parts = images.view(batch, channels, patches, height // patches, patches, width // patches)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // patches, width // patches)
