"""What the tests of augmentations of a batch begin with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sslkit.augmentations import batch
from sslkit.augmentations.batch.augment import BatchAugment
from sslkit.core.config.build import build


class At(NamedTuple):
    """A moment of training."""

    step: int = 3
    epoch: int = 1
    seed: int = 5


def made(name: str, **values: object) -> BatchAugment:
    """By its settings, as the command line gives them."""
    kind = batch.load(name)
    config = build(kind.Config, name, {f"{name}.{key}": value for key, value in values.items()})
    augment: BatchAugment = kind(config)
    return augment


def photos(count: int, side: int = 32) -> Tensor:
    """Clouds of many sizes, as photographs have them, far from black and white."""
    random = torch.Generator().manual_seed(3)
    spectrum = torch.fft.rfft2(torch.randn(count, 3, side, side, generator=random, dtype=torch.float64))
    ky, kx = torch.fft.fftfreq(side, 1 / side)[:, None], torch.fft.rfftfreq(side, 1 / side)
    clouds = torch.fft.irfft2(spectrum / (1 + ky.square() + kx.square()).sqrt(), s=(side, side))
    offset = torch.rand(count, 3, 1, 1, generator=random, dtype=torch.float64)
    return 0.4 + 0.2 * offset + 0.03 * clouds / clouds.std()


def inside(side: int, reach: int) -> Tensor:
    """|ky|, |kx| <= reach over the full plane, unshifted."""
    ky, kx = torch.fft.fftfreq(side, 1 / side)[:, None].abs(), torch.fft.fftfreq(side, 1 / side).abs()
    return (ky <= reach) & (kx <= reach)
