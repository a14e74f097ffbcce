"""Max-tree and min-tree filters: small bright, or small dark, details go; every other edge stays where it is.

Gu, Sun, Chen, Xiao, Liu, Xu and Najman, *Dual Structure-Aware Image Filterings for Semi-supervised Medical
Image Segmentation*, Medical Image Analysis 2025, https://arxiv.org/abs/2312.07264

The max-tree of an image has the connected components of {x >= t} as nodes, for all grey values t; the
min-tree is that of the inverted image. A filter removes nodes, and their pixels sink to the value of the
nearest node that stays. It follows the order of grey values alone: filtering commutes with any monotone
change of contrast, and filtering twice is filtering once. Each image is filtered by the one tree or the
other, each channel by itself.

Differs from the paper: it removes nodes without siblings, which only the tree itself can tell, built pixel
after pixel on a CPU. Here a node stays if it holds a square of k × k pixels: an opening by reconstruction
(Vincent, *Morphological Grayscale Reconstruction in Image Analysis*, IEEE TIP 1993), made of moving maxima on
the device. The CPU repeats the reconstruction's four sweeps until nothing changes. Elsewhere nobody asks
whether something does, and `sweeps_of` says how often: parts that only a path of more turns reaches keep a
lower value, in photos of 224 px less than a pixel in ten thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.augmentations import settings
from sslkit.augmentations.batch.augment import BatchAugment, Moment, batch_draws, pictures
from sslkit.augmentations.color import check_colors, host_may_ask
from sslkit.core import rng
from sslkit.core.config.setting import setting

Planes = NDArray[np.floating[Any]]


class MaxTree(BatchAugment):
    """Max-tree filters after DSAIF (2025): details without room for a square vanish, in any contrast."""

    @dataclass(frozen=True)
    class Config:
        side: tuple[float, float] = setting(
            (0.02, 0.08),
            "side of the square that a detail must hold to stay, share of the side, drawn for a view (ours)",
            above=0,
            high=1,
            ordered=True,
        )
        bright: float = settings.share(
            0.5, "of the images whose bright details go; of the others, dark ones (ours)"
        )
        share: float = settings.share(0.5, "of the images that are filtered (ours)")

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, views: dict[str, Tensor], index: Tensor, clock: Moment) -> dict[str, Tensor]:
        changed = {
            name: self._view(view, index, clock, f"maxtree.{name}") for name, view in pictures(views).items()
        }
        return {**views, **changed}

    def _view(self, images: Tensor, index: Tensor, clock: Moment, stream: str) -> Tensor:
        smallest, largest = self.config.side
        share = smallest + (largest - smallest) * batch_draws(clock, stream).random()
        side = max(2, round(share * min(images.shape[2:])))
        streams = [f"{stream}.chosen", f"{stream}.bright"]
        draws = rng.uniforms(clock.seed, clock.epoch, index, streams)[..., None, None, None]
        chosen, bright = draws[0] < self.config.share, draws[1] < self.config.bright
        # The one tree of 1 - x is the other tree of x; 1 - (1 - x) may differ from x in the last bit.
        turned = torch.where(bright, images, 1 - images)
        if not host_may_ask(images):
            filtered = open_by_reconstruction(turned, side)
        else:
            wanted, filtered = chosen.flatten(), turned
            filtered[wanted] = open_by_reconstruction(turned[wanted], side)
        return torch.where(chosen, torch.where(bright, filtered, 1 - filtered), images)


def open_by_reconstruction(images: Tensor, side: int) -> Tensor:
    """Images float [B, 3, H, W] without the nodes of their max-trees that hold no square of side × side
    pixels.

    Neighbours are the four beside a pixel. An image in which there is no room for a square becomes its
    minimum.
    """
    images = check_colors(images)
    if len(images) == 0:
        return images
    tall, wide = min(side, images.shape[2]), min(side, images.shape[3])
    least = -F.max_pool2d(F.max_pool2d(-images, (tall, 1), 1), (1, wide), 1)
    # Its own square's pixels have the value at once: an opening, from which less is left to reconstruct.
    padded = F.pad(least, (wide - 1, wide - 1, tall - 1, tall - 1), value=-torch.inf)
    seed = F.max_pool2d(F.max_pool2d(padded, (tall, 1), 1), (1, wide), 1)
    return reconstructed(seed, images)


def reconstructed(seed: Tensor, ceiling: Tensor) -> Tensor:
    """The seed [..., H, W] spread over neighbours as far as the ceiling, nowhere below it, lets it."""
    if host_may_ask(seed):
        size = seed.shape[-2:]
        grown = _until_nothing_changes(seed.reshape(-1, *size).numpy(), ceiling.reshape(-1, *size).numpy())
        return torch.from_numpy(grown).view(seed.shape)
    swept, turned = seed, ceiling.mT.contiguous()
    for _ in range(sweeps_of(max(ceiling.shape[-2:]))):
        for limit in (ceiling, turned):
            down = _swept(swept, limit)
            swept = _swept(down.flip(-2), limit.flip(-2)).flip(-2).mT
    return swept.contiguous()


def sweeps_of(side: int) -> int:
    """How often a device sweeps down, up, right and left: photos of 32, 96, 224 px need 8, 16, 50 at most."""
    return max(8, side // 6)


def _swept(grown: Tensor, ceiling: Tensor) -> Tensor:
    """Downwards, row y becomes min(ceiling, max(itself, row y - 1 as it has become)): in log2(H) steps.

    A row does min(high, max(low, ·)) to what comes from above; two rows in a row do the like, with other
    bounds.
    """
    low, high, distance = grown, ceiling, 1
    while distance < grown.shape[-2]:
        below_low, below_high = low[..., distance:, :], high[..., distance:, :]
        above_low = low[..., :-distance, :].clamp(below_low, below_high)
        above_high = high[..., :-distance, :].clamp(below_low, below_high)
        low = torch.cat([low[..., :distance, :], above_low], -2)
        high = torch.cat([high[..., :distance, :], above_high], -2)
        distance *= 2
    return low


def _until_nothing_changes(planes: Planes, ceilings: Planes) -> Planes:
    """`reconstructed` of [N, H, W] on the CPU: four sweeps again and again, of planes that still change.

    Rows come first in memory, as they are what a step takes; for sweeps to the sides columns do.
    """
    result, active = planes.copy(), np.arange(len(planes))
    grown, limit = (np.ascontiguousarray(one.transpose(1, 0, 2)) for one in (planes, ceilings))
    while len(active):
        before = grown.copy()
        _sweep_both_ways_(grown, limit)
        turned = np.ascontiguousarray(grown.transpose(2, 1, 0))
        _sweep_both_ways_(turned, np.ascontiguousarray(limit.transpose(2, 1, 0)))
        grown = np.ascontiguousarray(turned.transpose(2, 1, 0))
        changed = (grown != before).any((0, 2))
        result[active[~changed]] = grown[:, ~changed].transpose(1, 0, 2)
        active, grown, limit = active[changed], grown[:, changed], limit[:, changed]
    return result


def _sweep_both_ways_(rows: Planes, ceilings: Planes) -> None:
    """Down and up again, in place, along the first dimension."""
    higher, count = np.empty_like(rows[0]), len(rows)
    for order in (range(1, count), range(count - 2, -1, -1)):
        for place in order:
            np.maximum(rows[place], rows[place - order.step], out=higher)
            np.minimum(higher, ceilings[place], out=rows[place])
