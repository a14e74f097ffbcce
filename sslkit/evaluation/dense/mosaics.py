"""Mosaics of labelled photos: the class of every cell of a map is known without masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sslkit.augmentations.crops import CenterCrop
from sslkit.core import rng
from sslkit.core.console import command
from sslkit.core.errors import UserError
from sslkit.data.loading.loader import evaluation_loader
from sslkit.data.sources.image_set import ImageSet
from sslkit.evaluation.dense.cells import Scenes, Tally

TILINGS = (2, 3)
"""Photos a side."""

LEAST_PHOTOS = 2 * TILINGS[0] ** 2
"""Photos of a part: two mosaics, one to fit and one to choose on, or two to estimate an interval from."""

_BATCH = 128


@dataclass(frozen=True)
class Mosaics:
    """Photos of each part, tiled; every photo is in one mosaic at most, so that mosaics are independent."""

    training: ImageSet
    validation: ImageSet
    tilings: tuple[int, ...]
    workers: int
    seed: int

    name = "mosaics"
    measures = ("patches of mosaics",)

    @property
    def classes(self) -> int:
        return len(self.training.classes)

    def scenes(self, size: int, grid: int) -> tuple[Scenes, Scenes]:
        """Mosaics of size x size pixels of both parts, with the classes of grid x grid cells."""
        training = self._scenes("training", self.training, size, grid)
        return training, self._scenes("validation", self.validation, size, grid)

    def _scenes(self, name: str, images: ImageSet, size: int, grid: int) -> Scenes:
        photos, labels = _read(images, [-(-size // tiles) for tiles in self.tilings], self.workers)
        order = arrange(len(labels), self.tilings, self.seed, f"mosaics of {name}")
        if len(order) < 2:
            problem = f"{images.name}: {len(labels)} {name} photos can be read, {LEAST_PHOTOS} make mosaics"
            raise UserError(problem, command("sslkit", "check", images.name) + " names the others")
        return Scenes(
            torch.stack([_compose(photos, members, size) for members in order]),
            torch.stack([_cells(labels[list(members)], size, grid).flatten() for members in order]),
            torch.arange(len(order)),
        )

    def tallies(self, scenes: Scenes, logits: Tensor) -> tuple[Tally, ...]:
        """Cells that are right, of those with a class."""
        known = scenes.cells >= 0
        right = (logits.argmax(dim=2) == scenes.cells) & known
        return (Tally(right.sum(1, keepdim=True).double(), known.sum(1, keepdim=True).double()),)


def tilings_of(size: int, grid: int) -> tuple[int, ...]:
    """The tilings in which every tile holds a cell of its own."""
    return tuple(
        tiles
        for tiles in TILINGS
        if set(range(tiles**2)) <= set(tile_of(size, grid, tiles).flatten().tolist())
    )


def edges(size: int, tiles: int) -> list[int]:
    """Where tiles begin, and where the last one ends, pixels."""
    return [number * size // tiles for number in range(tiles + 1)]


def tile_of(size: int, grid: int, tiles: int) -> Tensor:
    """The tile, in raster order, that each cell lies in; -1 where it straddles two: int64 [grid, grid]."""
    inner = torch.tensor(edges(size, tiles)[1:-1])
    starts = torch.arange(grid) * (size // grid)
    first, last = (torch.bucketize(at, inner, right=True) for at in (starts, starts + size // grid - 1))
    line = torch.where(first == last, first, -1)
    both = (line[:, None] >= 0) & (line >= 0)
    return torch.where(both, line[:, None] * tiles + line, -1)


def arrange(count: int, tilings: Sequence[int], seed: int, stream: str) -> list[tuple[int, ...]]:
    """Photos 0 … count - 1 in a keyed order as mosaics, of the tilings in turn; some may be left over.

    Args:
        tilings: ascending; where too few photos are left for one, the first is taken.
    """
    order = rng.generator(seed, 0, 0, stream).permutation(count).tolist()
    found: list[tuple[int, ...]] = []
    while len(order) >= tilings[0] ** 2:
        wanted = tilings[len(found) % len(tilings)] ** 2
        number = wanted if wanted <= len(order) else tilings[0] ** 2
        found.append(tuple(order[:number]))
        del order[:number]
    return found


def _cells(labels: Tensor, size: int, grid: int) -> Tensor:
    """Labels of the tiles [n²] → of the cells [grid, grid], -1 where there is none."""
    place = tile_of(size, grid, round(len(labels) ** 0.5))
    return torch.where(place >= 0, labels[place.clamp_min(0)], -1)


def _compose(photos: dict[int, Tensor], members: Sequence[int], size: int) -> Tensor:
    """uint8 [3, size, size]. Where the side is no multiple of the tiles, some lose a line of pixels."""
    tiles = round(len(members) ** 0.5)
    at = edges(size, tiles)
    mosaic = torch.empty(3, size, size, dtype=torch.uint8)
    for place, member in enumerate(members):
        (top, bottom), (left, right) = (at[i : i + 2] for i in divmod(place, tiles))
        photo = photos[-(-size // tiles)][member]
        mosaic[:, top:bottom, left:right] = photo[:, : bottom - top, : right - left]
    return mosaic


@dataclass(frozen=True)
class _Squares:
    """An image's central square at several sizes, from one decoding."""

    sides: tuple[int, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 [Σ 3 · side²]"""
        return torch.cat([CenterCrop(side, side)(image).flatten() for side in self.sides])


def _read(images: ImageSet, sides: Sequence[int], workers: int) -> tuple[dict[int, Tensor], Tensor]:
    """Side → uint8 [N, 3, side, side] of the N readable images, and their labels."""
    parts, labels = defaultdict(list), []
    for views, numbers, _ in evaluation_loader(images, _Squares(tuple(sides)), _BATCH, workers):
        squares = torch.split(views, [3 * side**2 for side in sides], dim=1)
        for side, square in zip(sides, squares, strict=True):
            parts[side].append(square.reshape(-1, 3, side, side))
        if numbers is not None:
            labels.append(numbers)
    if not labels:
        problem = f"{images.name}: none of {len(images)} images can be read"
        raise UserError(problem, command("sslkit", "check", images.name) + " says why")
    return {side: torch.cat(found) for side, found in parts.items()}, torch.cat(labels)
