"""Weather: snow, frost, fog, and the sun's brightness."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslkit.augmentations.corruptions.blur import correlate, enlarged, trail_kernels
from sslkit.augmentations.corruptions.draws import Draws
from sslkit.frequency import random_field

_TINT = (-0.08, 0.02, 0.06)  # of ice, around its mean grey
_GREYS = (0.45, 0.8)  # mean grey of a picture of frost
_DEVIATION = 0.11  # of its pixels


def snow(
    images: Tensor,
    draws: Draws,
    mean: float,
    deviation: float,
    enlargement: float,
    threshold: float,
    radius: float,
    blur: float,
    weight: float,
) -> Tensor:
    """Flakes: noise above a threshold, enlarged and blown across, on an image that is whitened."""
    noise = mean + deviation * draws.normal("flakes", 1, *images.shape[2:])
    flakes = enlarged(noise, max(1.0, enlargement))
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angle = (draws.uniform("angle") - 1.5) * math.pi / 2  # within 45° of the vertical
    flakes = correlate(flakes, trail_kernels(angle, radius, blur), "replicate")
    luma = (images * images.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(1, keepdim=True)
    whitened = weight * images + (1 - weight) * torch.maximum(images, 1.5 * luma + 0.5)
    return whitened + flakes + flakes.flip(2, 3)


def frost(images: Tensor, draws: Draws, image_weight: float, frost_weight: float) -> Tensor:
    """The image and a picture of frost, weighted and added."""
    return image_weight * images + frost_weight * frost_pictures(draws, *images.shape[2:])


def frost_pictures(draws: Draws, height: int, width: int) -> Tensor:
    """Ice made of random fields, float [B, 3, H, W] in [0, 1].

    The published data use five photographs, which are not ours to ship. These have their average colour,
    contrast and power law (|k|^-2), and ridges in place of crystals; accuracies on them are therefore not
    comparable with published ones on frost.
    """
    side = max(height, width, 4)
    waves = min(48, (side - 1) // 2)
    noise = draws.normal("ice", 3, 2 * waves + 1, 2 * waves + 1)
    smooth, first, second = random_field(noise, side, gamma=2.0).unbind(1)  # [B, side, side]
    ridges = torch.exp(-4 * first.abs()) + torch.exp(-4 * second.abs())
    ice = _standardised(_standardised(smooth) + 1.5 * _standardised(ridges))[:, :height, :width]
    grey = _GREYS[0] + (_GREYS[1] - _GREYS[0]) * draws.uniform("grey", 1, 1, 1)
    return (grey + noise.new_tensor(_TINT).view(3, 1, 1) + _DEVIATION * ice[:, None]).clamp(0, 1)


def _standardised(fields: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(fields, dim=(1, 2), keepdim=True)
    return (fields - mean) / deviation


def fog(images: Tensor, draws: Draws, thickness: float, decay: float) -> Tensor:
    """A plasma fractal is added, and the sum scaled back to the image's largest value."""
    height, width = images.shape[2:]
    side = 1 << (max(height, width, 2) - 1).bit_length()
    noise = 2 * draws.uniform("plasma", side, side) - 1
    layer = plasma(noise, decay)[:, None, :height, :width]
    largest = images.amax((1, 2, 3), keepdim=True)
    return (images + thickness * layer) * largest / (largest + thickness)


def plasma(noise: Tensor, decay: float) -> Tensor:
    """Periodic height maps by the diamond-square algorithm, [B, N, N] in [0, 1], N a power of two.

    noise: uniform in [-1, 1], [B, N, N]; each point gets its own, weaker by decay² from one level to the
    next finer one.
    """
    field = torch.zeros_like(noise)
    step, strength = noise.shape[-1], 1.0
    while step >= 2:
        half = step // 2
        corner = field[:, ::step, ::step]
        beside, below = corner.roll(-1, 2), corner.roll(-1, 1)
        centre = (corner + beside + below + below.roll(-1, 2)) / 4 + strength * noise[
            :, half::step, half::step
        ]
        field[:, half::step, half::step] = centre
        upper = (corner + beside + centre + centre.roll(1, 1)) / 4
        field[:, ::step, half::step] = upper + strength * noise[:, ::step, half::step]
        lower = (corner + below + centre + centre.roll(1, 2)) / 4
        field[:, half::step, ::step] = lower + strength * noise[:, half::step, ::step]
        step, strength = half, strength / decay**2
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return (field - low) / (high - low)


def brightness(images: Tensor, draws: Draws, added: float) -> Tensor:
    """HSV's value plus `added`; hue and saturation stay, hence all channels grow by one factor."""
    value = images.amax(1, keepdim=True)
    brighter = (value + added).clamp(0, 1)
    return torch.where(value > 0, images * brighter / value.clamp(min=1e-6), brighter)
