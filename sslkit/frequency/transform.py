"""The real 2-D Fourier transform and its inverse, of all that MKL refuses in some version of torch too.

torch 2.14 refuses a transform of nothing (versions up to 2.13 returned an empty spectrum). torch 2.6 refuses
numbers that are one number in memory, seen many times ("Inconsistent configuration parameters"): an expanded
image, or the gradient of a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Norm = Literal["backward", "ortho"]


def rfft2(images: Tensor, norm: Norm = "backward") -> Tensor:
    """`torch.fft.rfft2`, also of no images: float32 or float64 [..., H, W] → complex [..., H, W // 2 + 1]."""
    if images.numel() == 0:
        half = images[..., : images.shape[-1] // 2 + 1]
        return torch.complex(half, half)
    spectrum: Tensor = torch.fft.rfft2(images.contiguous(), norm=norm)
    return spectrum


def irfft2(spectrum: Tensor, size: Sequence[int], norm: Norm = "backward") -> Tensor:
    """`torch.fft.irfft2`, also of nothing: complex [..., H, W // 2 + 1] → real [..., H, W]. size: (H, W)."""
    if spectrum.numel() == 0:
        return spectrum.real[..., :1].expand(*spectrum.shape[:-2], *size)
    images: Tensor = torch.fft.irfft2(spectrum, s=tuple(size), norm=norm)
    if torch.is_grad_enabled() and images.requires_grad:
        images = _WholeGradient.apply(images)
    return images


class _WholeGradient(torch.autograd.Function):
    """The identity, whose gradient has all its numbers in memory: a forward transform will be taken of it."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.mark_dirty(images)  # neither a copy nor a view: what is returned may be changed in place
        return images

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()
