"""The figures that pictures show: magnitudes, ring power, its slope, and how far two images are apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sslkit.frequency import power_spectrum, radial_profile


def log_magnitude(images: Tensor) -> Tensor:
    """log10(1 + |F images|), mean over channels, zero frequency centred: [B, C, H, W] → [B, H, W].

    F is the DFT without normalisation: with the orthonormal one nearly every bin of an image in [0, 1] lies
    below 1, and the picture would be flat.
    """
    pixels = images.shape[-1] * images.shape[-2]
    return torch.log10(1 + (power_spectrum(images) * pixels).sqrt().mean(1))


def ring_power(images: Tensor) -> Tensor:
    """Mean |F images|² (orthonormal) of each ring k <= d < k + 1, over channels: [B, rings]."""
    return radial_profile(power_spectrum(images).mean(1))


def ring_centres(rings: int) -> np.ndarray:
    """Where to draw ring k: at k + ½, so that a cut at radius r falls between the rings it parts."""
    return np.arange(rings) + 0.5


def power_law(power: Tensor) -> tuple[float, float]:
    """(c, α) of the least-squares fit power ≈ c / f^α over rings 1 … last, in log-log space.

    power: [rings]; ring 0 is the mean grey and takes no part, and each octave weighs the same. Natural images
    have α around 2 (Field, 1987).
    """
    frequency = ring_centres(len(power))[1:]
    values = power[1:].double().clamp_min(1e-20).cpu().numpy()
    slope, offset = np.polyfit(np.log(frequency), np.log(values), 1, w=frequency**-0.5)
    return float(np.exp(offset)), float(-slope)


def ring_error(images: Tensor, others: Tensor) -> Tensor:
    """√(Σ|F(others - images)|² / Σ|F images|²) per ring over the batch: [rings]; 1 = as good as nothing."""
    difference = ring_power(others - images).mean(0)
    return (difference / ring_power(images).mean(0).clamp_min(1e-20)).sqrt()


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image against another, dB, peak 1: [B, C, H, W] → [B]."""
    return -10 * torch.log10((images - others).square().mean((1, 2, 3)).clamp_min(1e-12))
