"""MFM's three baselines: what an image is degraded by, before the network is asked for the clean one.

Xie et al., ICLR 2023, arXiv 2206.07706: super-resolution, deblurring, denoising, trained like MFM with the
loss over all frequencies (`spectral_loss`). Batched, on the device; `degrade` draws, the others are told.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.core import rng
from sslkit.frequency.devices import full_precision
from sslkit.frequency.filters import check_images
from sslkit.frequency.masks import at_least_float32

LARGEST_KERNEL = 21


def degrade(images: Tensor, index: Tensor, seed: int, epoch: int, config: Any) -> Tensor:
    """What the setting `corruption` does to images [B, C, H, W] in [0, 1], each with its own blur or noise.

    "sr" has the setting `factor`, "deblur" `sigma`, "denoise" `noise`; draws are keyed by index [B].
    """
    if config.corruption == "sr":
        return super_resolution(images, config.factor)
    if config.corruption == "deblur":
        draw = rng.uniform(seed, epoch, index, "mfm.kernel")
        return blur(images, 7 + 2 * (8 * draw).long(), config.sigma)  # 7, 9 … 21 pixels
    return add_noise(images, rng.normal(seed, epoch, index, images.shape[1:], "mfm.noise"), config.noise)


def super_resolution(images: Tensor, factor: int = 8) -> Tensor:
    """Bicubic down by `factor` and up again, clamped to [0, 1] after both, without antialiasing (official).

    images: float [B, C, H, W] in [0, 1], sides of at least `factor`. Same shape and dtype out.
    """
    check_images(images)
    height, width = images.shape[-2:]
    if not 1 <= factor <= min(height, width):
        raise ValueError(f"factor is {factor}, expected 1 to {min(height, width)}, the image's shorter side")
    if len(images) == 0:
        return images
    small = _bicubic(at_least_float32(images), (height // factor, width // factor))
    return _bicubic(small, (height, width)).to(images.dtype)


def blur(images: Tensor, kernel_size: Tensor, sigma: float = 5.0) -> Tensor:
    """Convolve with a Gaussian cut off at `kernel_size` pixels; borders mirror about the edge pixel; not
    clamped.

    images: float [B, C, H, W]. kernel_size: int64 [B], odd, 1 … 21 (officially drawn from 7, 9 … 21). At
    sigma 5 (official) the cut-off rules: 1.94 pixels of spread at 7, 4.50 at 21. The sizes' values are
    checked on the CPU only: reading them elsewhere would stall the device.
    """
    check_images(images)
    _check_kernel_size(kernel_size, images)
    exact = at_least_float32(images)
    choice = kernel_size.to(images.device) // 2
    height, width = images.shape[-2:]
    rows = _blur_matrices(height, sigma, exact.dtype, exact.device)[choice][:, None]  # [B, 1, H, H]
    columns = _blur_matrices(width, sigma, exact.dtype, exact.device)[choice][:, None]
    with full_precision(images.device):
        return (rows @ exact @ columns.mT).to(images.dtype)


def add_noise(images: Tensor, noise: Tensor, strength: float = 75 / 255) -> Tensor:
    """`images + strength · noise`, not clamped (official): values leave [0, 1].

    noise: standard normal, the images' shape, independent per pixel and channel.
    """
    check_images(images)
    if noise.shape != images.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, expected the images' {tuple(images.shape)}")
    return images + strength * noise.to(images.dtype)


def _bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False).clamp_(0, 1)


@lru_cache(maxsize=16)
def _blur_matrices(length: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[11, length, length]: one-dimensional blurs of 1, 3 … 21 pixels, mirrored borders included.

    A dense product allows a kernel per image and images smaller than the kernel.
    """
    with torch.inference_mode(False):
        offset = torch.arange(-(LARGEST_KERNEL // 2), LARGEST_KERNEL // 2 + 1)
        inside = offset.abs() <= torch.arange(LARGEST_KERNEL // 2 + 1)[:, None]
        taps = torch.exp(offset.double().square() / (-2 * sigma**2)) * inside
        taps = taps / taps.sum(1, keepdim=True)  # [11, 21]
        period = max(1, 2 * (length - 1))
        source = (torch.arange(length)[:, None] + offset) % period  # [length, 21]
        source = torch.minimum(source, period - source) % length
        matrices = torch.zeros(len(taps), length, length, dtype=torch.float64)
        source, taps = source.expand(len(taps), -1, -1), taps[:, None].expand(-1, length, -1)
        return matrices.scatter_add_(2, source, taps).to(dtype).to(device)


def _check_kernel_size(kernel_size: Tensor, images: Tensor) -> None:
    if kernel_size.shape != images.shape[:1] or kernel_size.dtype != torch.int64:
        raise ValueError(
            f"kernel_size is {kernel_size.dtype} {tuple(kernel_size.shape)}, expected int64 [{len(images)}]"
        )
    if kernel_size.device.type != "cpu":
        return
    wrong = kernel_size[(kernel_size % 2 == 0) | (kernel_size < 1) | (kernel_size > LARGEST_KERNEL)]
    if len(wrong):
        raise ValueError(f"kernel_size is {int(wrong[0])}, expected odd, 1 to {LARGEST_KERNEL}")
