"""A few low frequencies of many images, by real matrix products instead of a whole FFT.

A disc of radius 16 touches 31 × 16 of the 224 × 113 bins of a half spectrum. On a CPU two skinny GEMMs
reach those bins faster than the FFT computes all; the result is the same sub-block of `rfft2(images,
norm="ortho")`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_COLUMNS = 16  # narrower products are slower than one this wide: half the speed at 6 and 10 columns


class PrunedDFT(NamedTuple):
    """The bins |ky| < reach, 0 <= kx < reach, and the matrices that go there and back."""

    reach: int
    rows: Tensor  # complex [2 reach - 1, H]
    columns: Tensor  # [W, 2 reach] or wider by zeros, real and imaginary parts side by side
    inverse: Tensor  # [2 reach, W], every column but the first counted twice: its mirror image is not stored

    def analyse(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] → their low bins, complex [B, C, 2 reach - 1, reach]."""
        pairs = self.columns.shape[1] // 2  # not -1, which a batch of nothing leaves open
        lines = (images.reshape(-1, images.shape[-1]) @ self.columns).view(*images.shape[:-1], pairs, 2)
        return (self.rows @ torch.view_as_complex(lines))[..., : self.reach]

    def synthesise(self, bins: Tensor) -> Tensor:
        """The images [B, C, H, W] whose half spectrum is `bins` in the band and zero outside."""
        lines = torch.view_as_real(self.rows.mH @ bins).flatten(-2)  # [B, C, H, 2 reach]
        return lines @ self.inverse

    def restrict(self, mask: Tensor) -> Tensor:
        """The band's part of a half-plane mask [..., H, W // 2 + 1]."""
        low = mask[..., : self.reach]
        return torch.cat([low[..., : self.reach, :], low[..., mask.shape[-2] - self.reach + 1 :, :]], -2)


def pruned_for(images: Tensor, radius: float) -> PrunedDFT | None:
    """The band that holds the disc, where it is both exact and the faster way; otherwise None.

    Exact: below Nyquist on both sides, and full float32 products (a TF32 or bfloat16 product loses three
    digits). Faster: on the CPU, while the disc is small against the image: products win up to reaches of
    about N / 5 at N = 48 … 160, N / 8 at 224 … 384, N / 11 at 512 (docs/benchmarks.md).
    """
    height, width = images.shape[-2:]
    small = radius <= min(height, width) // 7
    if images.device.type != "cpu" or not small or not _exact_products():
        return None
    return _cached_pruned(height, width, math.ceil(radius), torch.promote_types(images.dtype, torch.float32))


def _exact_products() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # PyTorch refuses to say once its old and its new precision settings were mixed
        return False


@lru_cache(maxsize=64)
def _cached_pruned(height: int, width: int, reach: int, dtype: torch.dtype) -> PrunedDFT:
    with torch.inference_mode(False):  # an inference tensor in the cache would break later training
        wave = torch.arange(reach, dtype=torch.float64)
        rows = torch.cat([wave, -wave[1:].flip(0)])[:, None] * torch.arange(height) / height
        turns = torch.arange(width)[:, None] * wave / width
        angle = 2 * math.pi * turns
        pair = torch.stack([angle.cos(), -angle.sin()], -1) / math.sqrt(width)  # [W, reach, 2]
        twice = torch.where(wave > 0, 2.0, 1.0)[:, None]
        complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        return PrunedDFT(
            reach,
            (torch.polar(torch.ones_like(rows), -2 * math.pi * rows) / math.sqrt(height)).to(complex_dtype),
            F.pad(pair.flatten(1), (0, max(0, LEAST_COLUMNS - 2 * reach))).to(dtype),
            (pair * twice).flatten(1).T.contiguous().to(dtype),
        )
