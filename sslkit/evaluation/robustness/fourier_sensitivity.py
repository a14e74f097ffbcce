"""Images that show which frequencies a classifier relies on: filtered, or with noise of one wave."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sslkit.augmentations.corruptions.draws import Draws
from sslkit.augmentations.corruptions.severity import small
from sslkit.frequency import low_pass

Wave = tuple[int, int]
"""(ky, kx), cycles per image."""


def default_radii(side: int) -> tuple[float, ...]:
    """Radii of filters in bins, each √2 times the one before, from 1 to side / 2, the edge of the square."""
    steps = math.floor(2 * math.log2(side / 2))
    return tuple(round(side / 2 / 2 ** (step / 2), 2) for step in range(steps, -1, -1))


def low_passed(images: Tensor, radius: float) -> Tensor:
    """The frequencies below `radius` of images in [0, 1], clamped to [0, 1] again."""
    return low_pass(images, radius).clamp(0, 1)


def high_passed(images: Tensor, radius: float) -> Tensor:
    """The frequencies from `radius` on, and each channel's mean; clamped to [0, 1].

    Without the mean half of all values would be negative, and the clamp would cut them off.
    """
    return (images - low_pass(images, radius) + images.mean((2, 3), keepdim=True)).clamp(0, 1)


def wave(height: int, width: int, frequency: Wave) -> Tensor:
    """The cosine with this frequency, of L2 norm 1: [height, width], a real Fourier basis image."""
    down, right = frequency
    rows, columns = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    turns = down * rows[:, None] / height + right * columns / width
    cosine = torch.cos(2 * math.pi * turns)
    unit: Tensor = cosine / torch.linalg.vector_norm(cosine)
    return unit.float()


def add_wave(images: Tensor, index: Tensor, frequency: Wave, norm: float, seed: int = 0) -> Tensor:
    """Noise of one frequency and of L2 norm `norm` in each channel, with a random sign in each.

    Yin et al., *A Fourier Perspective on Model Robustness in Computer Vision*, NeurIPS 2019, arXiv
    1906.08988, section 3. images: float [B, 3, H, W] in [0, 1]. index: int64 [B], keys of the signs. The
    sum is clamped to [0, 1].
    """
    draws = Draws(seed, index, f"wave.{frequency[0]}.{frequency[1]}")
    sign = torch.where(draws.uniform("sign", images.shape[1], 1, 1) < 0.5, -1.0, 1.0)
    noise = norm * wave(images.shape[2], images.shape[3], frequency).to(images.device)
    return (images + sign * noise).clamp(0, 1)


def default_norm(side: int) -> float:
    """The paper's norm, 4 at 32 pixels and 15.7 at 224; between and beyond, the same deviation per pixel."""
    return 4 * side / 32 if small(side) else 15.7 * side / 224


def heat_map_axis(side: int, points: int) -> tuple[int, ...]:
    """-k … 0 … k: `points` frequencies beside zero on either side, spread evenly up to side // 2."""
    if not 1 <= points <= side // 2:
        raise ValueError(f"points is {points}, expected 1 to {side // 2}, half the side")
    positive = [round(side // 2 * point / points) for point in range(1, points + 1)]
    return (*(-k for k in reversed(positive)), 0, *positive)


def half_of(axis: tuple[int, ...]) -> list[Wave]:
    """The waves (ky, kx) of the square axis × axis without those that are another one's mirror image."""
    return [(down, right) for down in axis for right in axis if right > 0 or (right == 0 and down >= 0)]


def mirrored(values: Mapping[Wave, float], axis: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """A value for each wave of the half → rows ky, columns kx over the whole square."""
    both = {**values, **{(-down, -right): value for (down, right), value in values.items()}}
    return tuple(tuple(both[down, right] for right in axis) for down in axis)
