"""Blur: defocus, glass, motion and zoom."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.augmentations.corruptions.draws import Draws
from sslkit.frequency.devices import fourier_device, full_precision


def defocus_blur(images: Tensor, draws: Draws, radius: float, softness: float) -> Tensor:
    """Convolution with a disc, borders mirrored about the edge pixel."""
    return correlate(images, disc_kernel(radius, softness)[None], "reflect")


def disc_kernel(radius: float, softness: float) -> Tensor:
    """Pixels within `radius` of the centre, all alike, softened by a Gaussian; [K, K], sum 1.

    The Gaussian is cut off at 3 × 3 pixels, at 5 × 5 for radii above 8, as in the published data.
    """
    soft = 1 if radius <= 8 else 2
    reach = math.floor(radius) + soft
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disc = (offset[:, None] ** 2 + offset**2 <= radius**2).double()
    taps = torch.exp(-0.5 * (offset[reach - soft : reach + soft + 1] / softness) ** 2)
    kernel = F.conv2d(disc[None, None], torch.outer(taps, taps)[None, None], padding=soft)[0, 0]
    return (kernel / kernel.sum()).float()


def glass_blur(images: Tensor, draws: Draws, deviation: float, reach: float, passes: float) -> Tensor:
    """A slight blur, pixels displaced by at most `reach`, the blur again."""
    blurred = _gaussian_blur(images, deviation)
    for number in range(int(passes)):
        height, width = images.shape[2:]
        source = _displaced(draws, f"pass{number}", height, width, max(1, round(reach)))
        blurred = (
            blurred.flatten(2).gather(2, source[:, None].expand(-1, images.shape[1], -1)).view_as(images)
        )
    return _gaussian_blur(blurred, deviation)


def _displaced(draws: Draws, use: str, height: int, width: int, reach: int) -> Tensor:
    """Which pixel's value each pixel takes over, int64 [B, H · W].

    The published data were made by a loop from the last pixel to the first, in which each takes over the
    value of a random pixel -reach … reach - 1 rows and columns away, inside a frame. (It was meant to swap
    the two; NumPy's views make it a copy.) A value may travel on, if its pixel was treated before. Here each
    pixel points to where its value comes from, and pointers are doubled until all have arrived: node p is
    pixel p afterwards, node H · W + p is pixel p before.
    """
    count = height * width
    offset = (draws.uniform(use, 2, height, width) * 2 * reach).long() - reach
    place = torch.arange(count, device=offset.device).view(height, width)
    rows, columns = place // width, place % width
    inside = (rows > reach) & (rows <= height - reach) & (columns > reach) & (columns <= width - reach)
    taken = torch.where(inside, place + offset[:, 0] * width + offset[:, 1], place).flatten(1)
    treated = inside.flatten()[taken] & (taken > place.flatten()) & inside.flatten()
    pointer = torch.where(treated, taken, taken + count)
    pointer = torch.cat([pointer, torch.arange(count, 2 * count, device=taken.device).expand_as(taken)], 1)
    while bool((pointer[:, :count] < count).any()):  # about five times: chains are short
        pointer = pointer.gather(1, pointer)
    return pointer[:, :count] - count


def motion_blur(images: Tensor, draws: Draws, radius: float, deviation: float) -> Tensor:
    """A trail in a direction within 45° of the horizontal; borders repeat the edge pixel."""
    angle = (draws.uniform("angle") - 0.5) * math.pi / 2
    return correlate(images, trail_kernels(angle, radius, deviation), "replicate")


def trail_kernels(angle: Tensor, radius: float, deviation: float) -> Tensor:
    """One half of a Gaussian, 2 · ⌈radius⌉ + 1 pixels long, along `angle` [B], radians; [B, K, K], sum 1.

    The nearest pixels to the line, as in ImageMagick, which made the published data.
    """
    reach = 2 * math.ceil(radius)
    step = torch.arange(reach + 1, device=angle.device)
    weight = torch.softmax(-0.5 * (step / deviation) ** 2, dim=0)
    right, down = ((step * part[:, None] - 0.5).ceil().long() for part in (angle.cos(), angle.sin()))
    side = 2 * reach + 1
    kernels = torch.zeros(len(angle), side * side, device=angle.device)
    place = (down + reach) * side + right + reach
    return kernels.scatter_add_(1, place, weight.expand_as(place).contiguous()).view(-1, side, side)


def zoom_blur(images: Tensor, draws: Draws, end: float, step: float) -> Tensor:
    """The mean of the image and of its enlargements by 1, 1 + step … up to `end`."""
    factors = np.arange(1, end, step)  # rounding lets it reach some of the ends, as in the published data
    total = images.clone()
    for factor in factors:
        total += enlarged(images, float(factor))
    return total / (len(factors) + 1)


def enlarged(images: Tensor, factor: float) -> Tensor:
    """The centre of the images [B, C, H, W], `factor` >= 1 times as large; bilinear, corners on corners."""
    sides = images.shape[2:]
    inner = [math.ceil(side / factor) for side in sides]
    top, left = ((side - part) // 2 for side, part in zip(sides, inner, strict=True))
    centre = images[:, :, top : top + inner[0], left : left + inner[1]]
    size = [round(part * factor) for part in inner]
    large = F.interpolate(centre, size=size, mode="bilinear", align_corners=True)
    top, left = ((part - side) // 2 for side, part in zip(sides, size, strict=True))
    return large[:, :, top : top + sides[0], left : left + sides[1]]


def _gaussian_blur(images: Tensor, deviation: float) -> Tensor:
    """Gaussian blur cut off at four deviations; borders repeat the edge pixel."""
    rows, columns = (gaussian_matrix(side, deviation, 4, "nearest").to(images) for side in images.shape[2:])
    return rows @ images @ columns.T


def gaussian_matrix(length: int, deviation: float, truncate: float, border: str) -> Tensor:
    """A one-dimensional Gaussian blur as a matrix [length, length], rows with sum 1.

    Args:
        truncate: where the Gaussian is cut off, in deviations. It may be longer than the image.
        border: "nearest" repeats the edge pixel, "symmetric" mirrors about its outer edge.
    """
    reach = int(truncate * deviation + 0.5)
    offset = torch.arange(-reach, reach + 1)
    taps = torch.softmax(-0.5 * (offset / deviation).double() ** 2, dim=0)
    source = torch.arange(length)[:, None] + offset
    if border == "nearest":
        source = source.clamp(0, length - 1)
    else:
        source = source % (2 * length)
        source = torch.minimum(source, 2 * length - 1 - source)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, source, taps.expand(length, -1)).float()


def correlate(images: Tensor, kernels: Tensor, border: str) -> Tensor:
    """Each image [B, C, H, W] with its own kernel [B or 1, K, K], K odd; by FFT, since K reaches 81.

    border: "reflect" or "replicate", as in torch.
    """
    place = fourier_device(images.device)
    reach = kernels.shape[-1] // 2
    with full_precision(images.device):
        padded = F.pad(images, (reach, reach, reach, reach), mode=border).to(place)
        size = padded.shape[2:]
        spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels.to(place), s=size).conj()[:, None]
        filtered: Tensor = torch.fft.irfft2(spectrum, s=size)[..., : images.shape[2], : images.shape[3]]
    return filtered.to(images.device)
