"""Batch Styles Standardization: in each view, all images of the batch get the style of one of them.

Scalbert, Vakalopoulou and Couzinié-Devy, *Towards Domain-Invariant Self-Supervised Learning with Batch Styles
Standardization*, ICLR 2024, https://arxiv.org/abs/2303.06088

With one style in a view, only content tells its images apart; with another style in the other view, an
image's two views agree in content alone. Of a style image s, drawn for the view, all images i get the
amplitudes of the low frequencies, and keep their phases (algorithm 1):

    A'_i = A_s where |ky|, |kx| <= b,  A_i elsewhere;    x_i = clamp(F⁻¹(A'_i exp(j P_i)))

((2 b + 1) / S)² is drawn from U(`radius`) for the view. Negatives should come from the image's own view,
which has one style: the method is asked for `negatives="view"`. A queue mixes styles, and gains nothing.

Differs from the official default, as neither the code nor the paper's tables were at hand: the bounds of
`radius` are ours. The paper draws colour jitter once for a view: `strength` does so, and is off, since
methods jitter image by image. An amplitude below 1e-6 of white's is not divided by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sslkit.augmentations import settings
from sslkit.augmentations.batch.augment import BatchAugment, Moment, batch_draws, pictures
from sslkit.augmentations.photometric import Photometry
from sslkit.core.config.setting import setting
from sslkit.core.distributed import collectives
from sslkit.frequency.resampling import amplitudes, swap_amplitude


class BSS(BatchAugment):
    """Batch Styles Standardization (ICLR 2024): one style for all images of a view."""

    wants: ClassVar[Mapping[str, Any]] = {"negatives": "view"}

    @dataclass(frozen=True)
    class Config:
        radius: tuple[float, float] = settings.area(
            (0.02, 1.0),
            "area of the square of low frequencies, share of the spectrum, drawn for each view (ours)",
        )
        share: float = settings.share(1.0, "of the batches that are standardised, by view (ours)")
        strength: float = setting(
            0.0, "of a colour jitter drawn once for a view, 1 is SimCLR's; 0: none (ours)", low=0, high=2.5
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        contrast, hue = 0.8 * config.strength, 0.2 * config.strength
        self.colours = Photometry(contrast, contrast, contrast, hue, jitter=1.0, grayscale=0.0, blur=0.0)

    def __call__(self, views: dict[str, Tensor], index: Tensor, clock: Moment) -> dict[str, Tensor]:
        changed = {name: self._view(view, clock, f"bss.{name}") for name, view in pictures(views).items()}
        return {**views, **changed}

    def _view(self, images: Tensor, clock: Moment, stream: str) -> Tensor:
        chosen, style, share = batch_draws(clock, stream).random(3)
        if len(images) == 0 or chosen >= self.config.share:
            return images
        if self.config.strength:
            one = torch.full((len(images),), clock.step, device=images.device)
            images = self.colours(images, one, clock.seed, 0, stream)
        smallest, largest = self.config.radius
        reach = reach_of(smallest + share * (largest - smallest), min(images.shape[2:]))
        # Filled on the device: a mask made by the host would have to be copied there in every step.
        radius = torch.full((1,), reach + 1.0, device=images.device)
        return swap_amplitude(images, style_of(images, style), radius).clamp_(0, 1)


def style_of(images: Tensor, draw: float) -> Tensor:
    """Amplitudes [1, 3, H, W // 2 + 1] of one image of all processes' batches, by a draw in [0, 1)."""
    count = len(images)
    source, place = divmod(int(draw * count * collectives.world_size()), count)
    return collectives.broadcast(amplitudes(images[place : place + 1]), source)


def reach_of(share: float, side: int) -> int:
    """The b of the square |ky|, |kx| <= b that has this share of side² bins, nearest; 0 is the mean alone."""
    return max(0, math.floor(math.sqrt(share) * side / 2))  # (√share · side - 1) / 2, rounded
