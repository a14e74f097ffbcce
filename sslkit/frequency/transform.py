"""The real 2-D Fourier transform and its inverse, for empty batches too.

torch 2.14's MKL refuses a transform of nothing (versions up to 2.13 returned an empty spectrum).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["backward", "ortho"]


def rfft2(images: Tensor, norm: Norm = "backward") -> Tensor:
    """`torch.fft.rfft2`, also of no images: float32 or float64 [..., H, W] → complex [..., H, W // 2 + 1]."""
    if images.numel() == 0:
        half = images[..., : images.shape[-1] // 2 + 1]
        return torch.complex(half, half)
    spectrum: Tensor = torch.fft.rfft2(images, norm=norm)
    return spectrum


def irfft2(spectrum: Tensor, size: Sequence[int], norm: Norm = "backward") -> Tensor:
    """`torch.fft.irfft2`, also of nothing: complex [..., H, W // 2 + 1] → real [..., H, W]. size: (H, W)."""
    if spectrum.numel() == 0:
        return spectrum.real[..., :1].expand(*spectrum.shape[:-2], *size)
    images: Tensor = torch.fft.irfft2(spectrum, s=tuple(size), norm=norm)
    return images
