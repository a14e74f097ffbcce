"""Crops of a whole batch in one go, on any device, with the very pixels of a loader's worker.

A worker crops one image and calls `F.interpolate(uint8, bicubic, antialias=True)`: Pillow's method in fixed
point. Each output pixel is a sum of neighbours with weights of Keys' cubic, a = -0.5, stretched to the scale
when the crop shrinks; columns first, then rows, each rounded to uint8. The weights of an axis are integers
w · 2^p, with the largest p that leaves each of them 16 bits. Here the same integers stand in one matrix per
image and axis, so that a batch of crops is two batched products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_INT16 = 1 << 15
_MOST_BITS = 22
"""Fixed-point weights have at most so many bits after the point."""
_EXACT = 1 << 24
"""Integers up to here are exact in float32."""
_DOUBLE = ("cpu", "cuda", "xpu")
"""Types of devices that compute in float64 as IEEE has it."""


def crop_resize_batch(images: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """A box of each image at size x size, mirrored where `flips` says so.

    Args:
        images: uint8 [B, 3, H, W], on any device.
        boxes: int64 [B, 4]: left, top, width, height, in pixels and within the images. On the device of
            `images` nothing waits for it.
        flips: bool [B], where the boxes are.

    Returns:
        uint8 [B, 3, size, size], contiguous, on the device of `images`: bit for bit what
        `F.interpolate(mode="bicubic", antialias=True)` makes of each crop on the CPU.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images: uint8 expected, got {images.dtype}")
    if boxes.device.type not in _DOUBLE:
        boxes, flips = boxes.cpu(), flips.cpu()
    left, top, width, height = boxes.unbind(1)
    count, channels, rows, columns = images.shape
    longest = max(rows, columns)
    if 128 * 255 * most_taps(longest, size) >= _EXACT:
        raise ValueError(f"images of at most 128 times {size} pixels expected, got {longest}")
    first, taps, bits = (part.chunk(2) for part in weights(torch.cat([width, height]), size, longest))
    # Mirroring is the matrix upside down.
    start = left[:, None] + torch.where(flips[:, None], first[0].flip(1), first[0])
    across = _Axis(start, torch.where(flips[:, None, None], taps[0].flip(1), taps[0]), bits[0], columns)
    down = _Axis(top[:, None] + first[1], taps[1], bits[1], rows)
    pixels = images.permute(0, 3, 1, 2).reshape(count, columns, channels * rows)  # [B, W, 3 · H]
    narrowed = across.apply(pixels).view(count, size, channels, rows)  # [B, S, 3, H]
    shrunk = down.apply(narrowed.permute(0, 3, 2, 1).reshape(count, rows, channels * size))
    return shrunk.view(count, size, channels, size).transpose(1, 2).contiguous()  # [B, 3, S, S]


def weights(length: Tensor, size: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed-point weights for crops of `length` pixels at `size` pixels, along one axis.

    Operations are few and plain, so that every device rounds them as the CPU does: no quotient by a number of
    Python's, which CUDA makes a product with its reciprocal, and no power, which need not be exact.

    Args:
        length: int64 [B], at most `longest`; the results are on its device.

    Returns:
        First source pixel of each output pixel, int64 [B, S]; the weights from there on, integers in float64
        [B, S, K], zero where an output needs fewer than K; bits after the point, int64 [B].
    """
    device = length.device
    scale = length.double()[:, None] / torch.full((), size, dtype=torch.float64, device=device)  # [B, 1]
    stretch = scale.clamp(min=1)
    support = 2 * stretch  # the cubic reaches two pixels to each side
    center = scale * (torch.arange(size, dtype=torch.float64, device=device) + 0.5)  # [B, S]
    first = (center - support + 0.5).long().clamp(min=0)
    last = torch.minimum((center + support + 0.5).long(), length[:, None])
    place = first[..., None] + torch.arange(most_taps(longest, size), device=device)  # [B, S, K]
    real = cubic((place - center[..., None] + 0.5) * (1 / stretch)[..., None])
    real = real.where(place < last[..., None], 0)
    total = torch.zeros_like(center)
    for tap in real.unbind(-1):  # one after the other, as the sum of a loop is rounded
        total += tap
    real /= total[..., None]
    bits = _bits(real.amax((1, 2)))
    scaled = real * _powers(bits)[:, None, None]
    return first, (scaled + torch.where(scaled < 0, -0.5, 0.5)).trunc(), bits


def most_taps(longest: int, size: int) -> int:
    """How many pixels of a crop of at most `longest` an output pixel is made of, at most."""
    return math.ceil(4 * max(1, longest / size)) + 1  # one for the rounding of the support's ends


def cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5 (IEEE Trans. ASSP 29, 1981), zero from 2 on."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _bits(largest: Tensor) -> Tensor:
    """The most bits after the point with which the largest weight [B] still is an int16; int64 [B]."""
    candidates = torch.arange(1, _MOST_BITS + 1, device=largest.device)
    fits = (largest[:, None] * _powers(candidates) + 0.5).trunc() < _INT16  # falls once, from true
    return fits.sum(1)


def _powers(bits: Tensor) -> Tensor:
    """2^bits in float64."""
    return (torch.ones_like(bits) << bits).double()


class _Axis:
    """One pass over a batch of crops: for each image a matrix from `side` pixels to `size`."""

    def __init__(self, first: Tensor, taps: Tensor, bits: Tensor, side: int) -> None:
        self.first, self.taps, self.bits, self.side = first, taps, bits, side
        self.size = taps.shape[1]

    def apply(self, pixels: Tensor) -> Tensor:
        """uint8 [B, side, M] → uint8 [B, size, M]

        Exact in float32, TF32 or not: weights are split into an upper and a lower part of at most 128, so
        that all factors have 8 bits, which even bfloat16 holds. Their products and all partial sums are
        integers of at most 128 · 255 · K < 2^24, which float32 holds, whatever the order of addition.
        """
        device, bits = pixels.device, self.bits.to(pixels.device, torch.int32)[:, None, None]
        upper = (self.taps / 256).round()
        matrix = torch.cat([self._matrix(upper, device), self._matrix(self.taps - 256 * upper, device)], 1)
        with torch.autocast(device.type, enabled=False):  # it would round the sums
            sums = (matrix @ pixels.float()).int()
        half = torch.ones_like(bits) << (bits - 1)
        total = (sums[:, : self.size] << 8) + sums[:, self.size :]
        return ((total + half) >> bits).clamp_(0, 255).byte()

    def _matrix(self, taps: Tensor, device: torch.device) -> Tensor:
        """float32 [B, size, side] with an output pixel's weights at the pixels it is made of."""
        count, size, reach = taps.shape
        place = self.first.to(device)[..., None] + torch.arange(reach, device=device)
        dense = torch.zeros(count, size, self.side + reach, device=device)  # the tail takes taps of weight 0
        return dense.scatter_(2, place, taps.to(device, torch.float32))[..., : self.side]
