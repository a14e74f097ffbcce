"""The independent references of the frequency tests.

`official_*` spells out the published formulas on the full, shifted, complex spectrum in float64; nothing of
`sslkit.frequency` is used here, and no FFT in `literal_dft`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None]
LOW, HIGH = torch.tensor([True]), torch.tensor([False])


def canonical(height: int, width: int | None = None, channels: int = 3) -> Tensor:
    """One image [1, C, H, W], float64 in [0, 1]: two waves and a texture, different in every channel."""
    width = width or height
    i = torch.arange(height, dtype=torch.float64)[:, None]
    j = torch.arange(width, dtype=torch.float64)
    planes = []
    for c in range(channels):
        slow = 0.25 * torch.sin(2 * math.pi * (3 * i / height + 5 * (c + 1) * j / width))
        fast = 0.15 * torch.cos(2 * math.pi * (20 * i / height - 7 * j / width) + c)
        texture = 0.1 * ((7 * i + 13 * j + 31 * c) % 17) / 16 - 0.05
        planes.append(0.5 + slow + fast + texture)
    return torch.stack(planes)[None]


def normalised(images: Tensor) -> Tensor:
    return (images - MEAN.to(images)) / STD.to(images)


def official_mask(height: int, width: int, radius: float) -> Tensor:
    """[H, W] float64, zero frequency at (H // 2, W // 2): 1 where the low-pass keeps."""
    i = torch.arange(height, dtype=torch.float64)[:, None] - height // 2
    j = torch.arange(width, dtype=torch.float64) - width // 2
    return (i * i + j * j < radius**2).double()


def official_masks(shape: torch.Size, keep_low: Tensor, radius: float) -> Tensor:
    """[B, 1, H, W]: what each image's input keeps."""
    low = official_mask(shape[-2], shape[-1], radius).expand(len(keep_low), 1, -1, -1)
    return torch.where(keep_low[:, None, None, None], low, 1 - low)


def official_corrupt(images: Tensor, keep_low: Tensor, radius: float, clamp: bool = True) -> Tensor:
    shifted = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1))
    kept = torch.fft.ifftshift(shifted * official_masks(images.shape, keep_low, radius), dim=(-2, -1))
    filtered = torch.fft.ifft2(kept).real
    return filtered.clamp(0, 1) if clamp else filtered


def official_distance(prediction: Tensor, target: Tensor, gamma: float) -> Tensor:
    """[B, C, H, W], unshifted."""
    difference = torch.fft.fft2(prediction, norm="ortho") - torch.fft.fft2(target, norm="ortho")
    return (difference.real**2 + difference.imag**2 + 1e-12) ** (gamma / 2)


def official_loss(
    prediction: Tensor, target: Tensor, keep_low: Tensor, radius: float, gamma: float = 1.0
) -> Tensor:
    scored = 1 - torch.fft.ifftshift(official_masks(prediction.shape, keep_low, radius), dim=(-2, -1))
    distance = official_distance(prediction, target, gamma)
    return (distance * scored).sum() / (scored.sum() * prediction.shape[1])


def literal_dft(image: Tensor) -> Tensor:
    """The double sum of the definition for one [H, W] image, complex128, unshifted."""
    height, width = image.shape
    result = torch.zeros(height, width, dtype=torch.complex128)
    for u in range(height):
        for v in range(width):
            for y in range(height):
                for x in range(width):
                    angle = -2 * math.pi * (u * y / height + v * x / width)
                    result[u, v] += image[y, x] * complex(math.cos(angle), math.sin(angle))
    return result
