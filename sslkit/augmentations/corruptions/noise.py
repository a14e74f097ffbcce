"""Noise: Gaussian, Poisson (shot) and salt and pepper (impulse), independent for each pixel and channel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sslkit.augmentations.corruptions.draws import Draws


def gaussian_noise(images: Tensor, draws: Draws, deviation: float) -> Tensor:
    return images + deviation * draws.normal("noise", *images.shape[1:])


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Counts of photons, `photons` of them on average where the image is white.

    Drawn on the CPU, by NumPy: exact for any rate, and the same for every device.
    """
    rates = (images * photons).cpu().double().numpy()
    counts = [
        generator.poisson(rate) for generator, rate in zip(draws.generators("photons"), rates, strict=True)
    ]
    return torch.from_numpy(np.stack(counts)).to(images) / photons


def impulse_noise(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Half of `share` of the values become 0, the other half 1."""
    draw = draws.uniform("place", *images.shape[1:])
    return torch.where(draw < share, (draw < share / 2).to(images), images)
