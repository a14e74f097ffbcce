"""A linear classifier of the cells of a map, and its accuracy with an image-level bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.core import rng
from sslkit.core.device import Precision, autocast, to_device
from sslkit.core.errors import UserError
from sslkit.evaluation.metrics.significance import Difference
from sslkit.evaluation.probe.linear import SPLIT, LinearProbe, fit_split
from sslkit.models.encoder import Encoder

_CELLS = 10_000
"""Training cells that are fitted to, at most; neighbours are alike, so more would add little but time."""

RESAMPLINGS = 1000
_THUMBNAIL = 8
"""Side of the thumbnail of a cell that raw pixels are, pixels."""

_BATCH = 64

MapFunction = Callable[[Tensor], Tensor]
"""float [B, 3, S, S] in [0, 1] → [B, D, g, g]."""


@dataclass(frozen=True)
class Scenes:
    """Images and the classes of their maps' cells, in raster order."""

    images: Tensor  # uint8 [M, 3, S, S]
    cells: Tensor  # int64 [M, g²], -1 where a cell has no class
    index: Tensor  # int64 [M]: positions in what they were made of


@dataclass(frozen=True)
class Reader:
    """One way of making maps of images."""

    read: MapFunction
    encoder: Encoder | None  # None: raw pixels
    device: torch.device
    precision: Precision

    def vectors(self, images: Tensor) -> Iterator[Tensor]:
        """float32 [B, g², D] on the device, batch by batch."""
        if self.encoder is not None:
            self.encoder.to(self.device).eval()
        for batch in torch.split(images, _BATCH):
            with torch.no_grad(), autocast(self.device, self.precision):
                found = self.read(to_device({"image": batch}, self.device)["image"])
            yield found.float().flatten(2).transpose(1, 2)


def last_map(encoder: Encoder) -> MapFunction:
    """Normalised patch tokens of a ViT, the last map of a CNN."""
    return lambda images: encoder.maps(images)[0]


def raw_patches(grid: int) -> MapFunction:
    """What a cell looks like: its mean colour and a thumbnail of it, D = 3 + 3 · 8²."""

    def read(images: Tensor) -> Tensor:
        mean = F.adaptive_avg_pool2d(images, grid)
        small = F.adaptive_avg_pool2d(images, grid * _THUMBNAIL)
        return torch.cat([mean, F.pixel_unshuffle(small, _THUMBNAIL)], dim=1)

    return read


def fit_cells(reader: Reader, scenes: Scenes, classes: int, seed: int) -> LinearProbe:
    """Fitted to at most CELLS cells; its penalty is chosen on a fifth of the images, not of the cells.

    Cells of one image are alike: with some on either side the weakest penalty would look best.

    Raises:
        UserError: no cell has a class.
    """
    chosen = _drawn(scenes.cells >= 0, seed)
    if not chosen.any():
        raise UserError("no cell of the training images is mostly of one class", "give a larger --size")
    vectors = [
        found[picked.to(found.device)]
        for found, picked in zip(reader.vectors(scenes.images), torch.split(chosen, _BATCH), strict=True)
    ]
    held = torch.zeros(len(chosen), 1, dtype=torch.bool)
    order = rng.generator(seed, 0, 0, "cells held out").permutation(len(chosen))
    held[torch.from_numpy(order)[: max(1, round(SPLIT * len(chosen)))]] = True
    aside = held.expand_as(chosen)[chosen]
    if aside.all():  # the others have no cells: choosing on what is fitted to beats not choosing
        split = (torch.arange(len(aside)),) * 2
    else:
        split = (~aside).nonzero().flatten(), aside.nonzero().flatten()
    return fit_split(torch.cat(vectors), scenes.cells[chosen].to(reader.device), split, classes=classes)


def _drawn(known: Tensor, seed: int) -> Tensor:
    """At most CELLS of the true entries of bool [M, g²]."""
    where = known.nonzero()
    order = rng.generator(seed, 0, 0, "cells").permutation(len(where))[:_CELLS]
    chosen = torch.zeros_like(known)
    rows, columns = where[torch.from_numpy(order)].unbind(1)
    chosen[rows, columns] = True
    return chosen


def constant_logits(training: Scenes, validation: Scenes, classes: int) -> Tensor:
    """As `cell_logits`, of a model that always names the most frequent class of training cells."""
    most = torch.bincount(training.cells[training.cells >= 0], minlength=classes).argmax()
    return F.one_hot(most, classes).float().expand(*validation.cells.shape, classes)


def cell_logits(reader: Reader, scenes: Scenes, head: LinearProbe) -> Tensor:
    """float32 [M, g², C], on the CPU."""
    return torch.cat([head.logits(found).cpu() for found in reader.vectors(scenes.images)])


@dataclass(frozen=True)
class Tally:
    """Per image and class, hits and totals: of one class they give accuracy, of several mean IoU."""

    hits: Tensor  # float64 [M, C]
    totals: Tensor  # float64 [M, C]

    def percent(self, weights: Tensor) -> Tensor:
        """Images taken so many times, [B, M] → [B]: the mean over the classes that are there."""
        hits, totals = weights @ self.hits, weights @ self.totals
        return 100 * (hits / totals.clamp_min(1)).sum(1) / (totals > 0).sum(1).clamp_min(1)

    @property
    def value(self) -> float:
        """Of all images."""
        return float(self.percent(self.hits.new_ones(1, len(self.hits))))

    def interval(self, seed: int) -> float:
        """Half the 95 % interval of `value`."""
        return _half(self.percent(resamplings(len(self.hits), seed)))


def between(first: Tally, second: Tally, seed: int) -> Difference:
    """Of two models on the same images, with the interval from resampling these images.

    Cells of one image fail together, so the images are what chance has drawn.
    """
    weights = resamplings(len(first.hits), seed)
    values = first.value, second.value
    margin = _half(first.percent(weights) - second.percent(weights))
    return Difference(*values, values[0] - values[1], margin, len(first.hits))


def resamplings(count: int, seed: int) -> Tensor:
    """How often each of `count` images is in a bootstrap sample, float64 [RESAMPLINGS, count]."""
    random = rng.generator(seed, 0, count, "resampled images")
    return torch.from_numpy(random.multinomial(count, [1 / count] * count, RESAMPLINGS)).double()


def _half(values: Tensor) -> float:
    low, high = torch.quantile(values, values.new_tensor([0.025, 0.975])).tolist()
    return float(high - low) / 2
