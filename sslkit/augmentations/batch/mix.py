"""BSIM: the first view holds parts of two images, and is asked to be similar to both, in proportion.

Chu, Zhan and Zhang, *A Unified Mixture-View Framework for Unsupervised Representation Learning*, BMVC 2022,
https://arxiv.org/abs/2011.13356

Image i of the first view is mixed with image r(i) of it, by CutMix (a rectangle of area 1 - λ is pasted) or
Mixup (λ x_i + (1 - λ) x_r(i)), λ ~ Beta(alpha, alpha). The other views stay clean. A loss that knows says

    L = λ L(view i, target i) + (1 - λ) L(view i, target r(i))

and finds what it needs beside the views: "mix_partner", r(i) as int64 [B], and "mix_weight", λ as float32
[B]; `two_hot` makes targets for a cross-entropy of them. Even a perfect mixture has the loss H(λ) = -λ log λ
- (1 - λ) log(1 - λ).

A re-implementation: no official code was found. Differs: λ is drawn once for a batch, as Mixup's own code
does; the paper adds the loss of clean views, here a `share` of the batches is mixed, which is equal on
average and costs no forward pass. Partners are those of all processes' batches moved on by a random number of
places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sslkit.augmentations import settings
from sslkit.augmentations.batch.augment import BatchAugment, Moment, batch_draws, pictures
from sslkit.core.config.setting import setting
from sslkit.core.distributed import collectives

_Box = tuple[int, int, int, int]
"""Top, left, bottom, right, pixels."""


class Mix(BatchAugment):
    """BSIM (BMVC 2022): the first view is a mixture of two images, similar to both."""

    wants: ClassVar[Mapping[str, Any]] = {"targets": "two-hot"}

    @dataclass(frozen=True)
    class Config:
        kind: Literal["cutmix", "mixup"] = setting(
            "cutmix", "a rectangle of the other image (official), or a weighted mean, safer at 32 px"
        )
        alpha: float = setting(1.0, "of the Beta distribution of an image's own share (official: 1)", above=0)
        share: float = settings.share(1.0, "of the batches that are mixed (ours)")
        mostly_own: bool = setting(
            False, "an image's own share is the larger one, as in i-Mix (official: false)"
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, views: dict[str, Tensor], index: Tensor, clock: Moment) -> dict[str, Tensor]:
        first = next(iter(pictures(views)), None)
        if first is None:
            return dict(views)
        images, draws = views[first], batch_draws(clock, f"mix.{first}")
        chosen, moved = draws.random(2)
        own = float(draws.beta(self.config.alpha, self.config.alpha))
        own = max(own, 1 - own) if self.config.mostly_own else own
        total = len(images) * collectives.world_size()
        if total < 2 or chosen >= self.config.share:
            return {**views, **_told(images, 0, 1.0)}
        places = 1 + int(moved * (total - 1))
        other = _moved_on(images, places)
        if self.config.kind == "mixup":
            mixed = torch.lerp(other, images, own)
        else:
            box = cut_box(own, images.shape[2], images.shape[3], draws)
            mixed, own = pasted(images, other, box)
        return {**views, first: mixed, **_told(images, places, own)}


def cut_box(own: float, height: int, width: int, draws: np.random.Generator) -> _Box:
    """A rectangle of the image's proportions and the area 1 - `own`, anywhere, cut off at the borders.

    Yun et al., *CutMix*, ICCV 2019, https://arxiv.org/abs/1905.04899, section 3.1; sides are whole pixels,
    rounded down.
    """
    tall, wide = int(height * math.sqrt(1 - own)), int(width * math.sqrt(1 - own))
    y, x = int(draws.integers(height)), int(draws.integers(width))
    top, left = y - tall // 2, x - wide // 2
    return max(0, top), max(0, left), min(height, top + tall), min(width, left + wide)


def pasted(images: Tensor, other: Tensor, box: _Box) -> tuple[Tensor, float]:
    """Images [B, 3, H, W] with the box of the others, and the share of the pixels that they keep."""
    top, left, bottom, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    height, width = images.shape[2:]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def two_hot(partner: Tensor, weight: Tensor, candidates: int) -> Tensor:
    """Targets float32 [B, candidates] for a cross-entropy: λ on the image's own place, the rest on its
    partner's.

    partner: int64 [B], weight: [B], as "mix_partner" and "mix_weight". Candidates are those of all processes,
    in the order of ranks, each process with as many images as this one.
    """
    rows = torch.zeros(len(partner), candidates, device=partner.device)
    own = collectives.rank() * len(partner) + torch.arange(len(partner), device=partner.device)
    rows.scatter_(1, own[:, None], weight[:, None].float())
    return rows.scatter_add_(1, partner[:, None], 1 - weight[:, None].float())


def _moved_on(images: Tensor, places: int) -> Tensor:
    """Each image's partner, `places` further on in all processes' batches."""
    every = collectives.gather(images).roll(-places, 0)
    first = collectives.rank() * len(images)
    return every[first : first + len(images)]


def _told(images: Tensor, places: int, own: float) -> dict[str, Tensor]:
    """What a loss needs: each image's partner among all processes' and its own share."""
    count, device = len(images), images.device
    total = max(1, count * collectives.world_size())
    place = collectives.rank() * count + torch.arange(count, device=device)
    return {
        "mix_partner": (place + places) % total,
        "mix_weight": torch.full((count,), own, dtype=torch.float32, device=device),
    }
