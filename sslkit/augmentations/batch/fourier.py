"""Fourier augmentation: each image gets amplitudes of another image of the batch, and keeps its phases.

Xu, Zhang, Zhang, Wang and Tian, *A Fourier-Based Framework for Domain Generalization*, CVPR 2021,
https://arxiv.org/abs/2105.11120

Amplitudes carry style, phases carry the places of things. With a partner s(i), never the image itself, and a
weight drawn for each image (equation 4, "amplitude mix"):

    A'_i = (1 - λ) A_i + λ A_s(i) where |ky|, |kx| <= b,  A_i elsewhere;    λ ~ U(0, 1)

The defaults are that paper's: the whole spectrum, mixed. Yang and Soatto, *FDA: Fourier Domain Adaptation for
Semantic Segmentation*, CVPR 2020, https://arxiv.org/abs/2004.05498, swap a small square:
`radius=[0.01, 0.01]` and `weight=[1, 1]`.

Differs from the official default: partners come from the batch, those of all processes, and not from another
domain, which is not known here; the result is clamped to [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.augmentations import settings
from sslkit.augmentations.batch.augment import BatchAugment, Moment, pictures
from sslkit.core import rng
from sslkit.core.config.setting import setting
from sslkit.core.distributed import collectives
from sslkit.frequency.resampling import amplitudes, swap_amplitude

_DRAWS = ("chosen", "partner", "radius", "weight")


class Fourier(BatchAugment):
    """Fourier amplitude mix (CVPR 2021), and FDA (CVPR 2020) by its settings: another image's style."""

    @dataclass(frozen=True)
    class Config:
        radius: tuple[float, float] = settings.area(
            (1.0, 1.0), "area of the square of low frequencies, share of the spectrum (official: 1)"
        )
        weight: tuple[float, float] = setting(
            (0.0, 1.0), "of the other image's amplitudes (official: 0 to 1)", low=0, high=1, ordered=True
        )
        share: float = settings.share(1.0, "of the images that are changed (official: 1)")

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, views: dict[str, Tensor], index: Tensor, clock: Moment) -> dict[str, Tensor]:
        changed = {
            name: self._view(view, index, clock, f"fourier.{name}") for name, view in pictures(views).items()
        }
        return {**views, **changed}

    def _view(self, images: Tensor, index: Tensor, clock: Moment, stream: str) -> Tensor:
        world, streams = collectives.world_size(), [f"{stream}.{draw}" for draw in _DRAWS]
        if world * len(images) < 2:
            return images  # no other image
        chosen, partner, share, weight = rng.uniforms(clock.seed, clock.epoch, index, streams)
        style = partners(partner)
        others = style if world == 1 else collectives.gather(amplitudes(images))[style]
        swapped = swap_amplitude(images, others, self._radius(share, min(images.shape[2:])))
        smallest, largest = self.config.weight
        weight = (smallest + (largest - smallest) * weight).where(chosen < self.config.share, 0.0)
        # Phases are equal, so a mean of images is one of amplitudes.
        return images.lerp(swapped, weight[:, None, None, None]).clamp_(0, 1)

    def _radius(self, share: Tensor, side: int) -> Tensor:
        """`bss.reach_of` of each image, and one more, as a mask has what is below its radius."""
        smallest, largest = self.config.radius
        area = smallest + (largest - smallest) * share
        return (area.sqrt() * (side / 2)).floor() + 1


def partners(draw: Tensor) -> Tensor:
    """Another image of all processes' batches for each, by draws in [0, 1) of this process's: int64 [B].

    Positions in the batches one after the other, in the order of ranks; every other image is equally likely.
    """
    total = len(draw) * collectives.world_size()
    own = collectives.rank() * len(draw) + torch.arange(len(draw), device=draw.device)
    return (own + 1 + (draw * (total - 1)).long()) % total
