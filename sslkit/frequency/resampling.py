"""What other papers do in the frequency domain: spectrum crops, amplitude swaps, random fields."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from sslkit.frequency.devices import full_precision
from sslkit.frequency.filters import check_images
from sslkit.frequency.masks import at_least_float32, square
from sslkit.frequency.transform import irfft2, rfft2


def spectrum_crop(images: Tensor, size: int, align: Literal["center", "corner"] = "center") -> Tensor:
    """The images at `size` × `size` pixels: an inverse DFT of only their lowest frequencies (brightness is
    kept).

    EfficientTrain's low-frequency crop (Wang et al., ICCV 2023, arXiv 2211.09703) as two real matrix
    products. images: float [B, C, H, W] → [B, C, size, size], not clamped: edges ring by a few per cent
    beyond [0, 1]. align="center" puts the new pixels where every resize does, and commutes with flips.
    align="corner" samples as the paper's code does, shifted by (H / size - 1) / 2 source pixels. Both give
    the Nyquist frequency of an even `size` to its two members alike; the paper's real part adds a faint
    checkerboard there (1e-3 on white noise).
    """
    check_images(images)
    height, width = images.shape[-2:]
    if align not in ("center", "corner"):
        raise ValueError(f"align is {align!r}, expected 'center' or 'corner'")
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size is {size}, expected 1 to {min(height, width)}, the image's shorter side")
    exact = at_least_float32(images)
    offset = 0.5 if align == "center" else 0.0
    rows = _resampler(height, size, offset, exact.dtype, exact.device)
    columns = _resampler(width, size, offset, exact.dtype, exact.device)
    with full_precision(images.device):
        return (rows @ exact @ columns.T).to(images.dtype)


def swap_amplitude(images: Tensor, style: Tensor, radius: float | Tensor) -> Tensor:
    """Give each image other amplitudes in the low square |ky|, |kx| < radius; phases stay.

    Batch Styles Standardization (Scalbert et al., arXiv 2303.06088) with one `style` for the whole batch;
    Fourier domain adaptation with a permutation. images: float [B, C, H, W] in [0, 1], *before* mean and
    std (a negative mean would keep its sign). style: int64 [B], the images whose amplitudes they get, or the
    amplitudes themselves, float [B or 1, C, H, W // 2 + 1] (see `amplitudes`). radius: a number > 0, or [B].
    Not clamped. An amplitude below 1e-6 of white's is not divided by: a flat image stays nearly flat.
    """
    check_images(images)
    height, width = images.shape[-2:]
    chosen = style.dtype == torch.int64 and style.shape == images.shape[:1]
    given = style.is_floating_point() and style.shape[1:] == (images.shape[1], height, width // 2 + 1)
    if not (chosen or (given and len(style) in (1, len(images)))):
        raise ValueError(
            f"style is {style.dtype} {tuple(style.shape)}, expected int64 [{len(images)}] or amplitudes"
        )
    if len(images) == 0:
        return images
    with full_precision(images.device):
        spectrum = rfft2(at_least_float32(images))
        amplitude = spectrum.abs()
        wanted = amplitude[style] if chosen else style.to(amplitude.dtype)
        gain = wanted / amplitude.clamp(min=1e-6 * height * width)
        inside = square(height, width, radius, images.device)
        swapped = irfft2(spectrum * gain.where(inside, 1), (height, width))
        return swapped.to(images.dtype)


def amplitudes(images: Tensor) -> Tensor:
    """|F| of images [B, C, H, W] over the half-plane of `masks`, [B, C, H, W // 2 + 1], at least float32."""
    check_images(images)
    with full_precision(images.device):
        return rfft2(at_least_float32(images)).abs()


def random_field(noise: Tensor, size: int | tuple[int, int], gamma: float = 2.0) -> Tensor:
    """Smooth Gaussian fields of zero mean and unit variance whose power falls as |k|^-gamma.

    Random Field Augmentations (Mansfield et al., arXiv 2311.03629). noise: standard normal [..., 2 K + 1, 2
    K + 1], one number per wave; K, the highest frequency, in cycles per image. size: a side, or (H, W).
    Returns [..., H, W], periodic.
    """
    highest = noise.shape[-1] // 2
    if noise.ndim < 2 or noise.shape[-2] != noise.shape[-1] or noise.shape[-1] % 2 == 0 or highest == 0:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, expected [..., 2 K + 1, 2 K + 1] with K > 0")
    height, width = (size, size) if isinstance(size, int) else size
    if 2 * highest >= min(height, width):
        raise ValueError(f"size is {size}, expected more than {2 * highest} for {highest} cycles")
    with full_precision(noise.device):
        exact = at_least_float32(noise)
        rows = _waves(highest, height, exact.dtype, exact.device)
        columns = _waves(highest, width, exact.dtype, exact.device)
        deviation = _deviation(highest, gamma, exact.dtype, exact.device)
        return (rows @ (exact * deviation) @ columns.T).to(noise.dtype)


def field_gradient(highest: int, gamma: float = 2.0) -> float:
    """Root mean square slope of a `random_field` along one axis, per side: 2 π √(Σ P k² / (2 Σ P)).

    At 64 px, K = 4 and gamma = 2 it is 0.135 per pixel: a displacement by more than a quarter of its inverse
    folds an image here and there.
    """
    squares = [
        y * y + x * x
        for y in range(highest + 1)
        for x in range(highest + 1)
        if 0 < y * y + x * x <= highest**2
    ]
    power = [square ** (-gamma / 2) for square in squares]
    moment = math.fsum(p * square for p, square in zip(power, squares, strict=True))
    return 2 * math.pi * math.sqrt(moment / (2 * math.fsum(power)))


@lru_cache(maxsize=64)
def _resampler(length: int, size: int, offset: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[size, length]: Σ cos(2π k t) / length over the kept k; t: from old to new position."""
    with torch.inference_mode(False):
        new = (torch.arange(size, dtype=torch.float64) + offset) / size
        old = (torch.arange(length, dtype=torch.float64) + offset) / length
        turns = new[:, None] - old
        matrix = torch.ones_like(turns)
        for wave in range(1, (size + 1) // 2):
            matrix += 2 * torch.cos(2 * math.pi * wave * turns)
        if size % 2 == 0:
            matrix += torch.cos(math.pi * size * turns)
        return (matrix / length).to(dtype).to(device)


@lru_cache(maxsize=64)
def _waves(highest: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Real waves [size, 2 K + 1]: 1, cosines, sines."""
    with torch.inference_mode(False):
        wave = torch.arange(1, highest + 1, dtype=torch.float64)
        angle = 2 * math.pi * torch.arange(size, dtype=torch.float64)[:, None] * wave / size
        basis = torch.cat([torch.ones(size, 1, dtype=torch.float64), angle.cos(), angle.sin()], 1)
        return basis.to(dtype).to(device)


@lru_cache(maxsize=64)
def _deviation(highest: int, gamma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of each product of two waves, [2 K + 1, 2 K + 1]."""
    with torch.inference_mode(False):
        wave = torch.arange(1, highest + 1, dtype=torch.float64)
        cycles = torch.cat([torch.zeros(1, dtype=torch.float64), wave, wave])
        distance = torch.hypot(cycles[:, None], cycles)
        power = torch.where((distance > 0) & (distance <= highest), distance.clamp(min=1).pow(-gamma), 0.0)
        return (power / power[: highest + 1, : highest + 1].sum()).sqrt().to(dtype).to(device)
