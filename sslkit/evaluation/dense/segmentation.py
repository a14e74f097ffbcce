"""Photos with masks: images/ beside masks/, PNG files whose values are class numbers, 255 for none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sslkit.augmentations.crops import to_tensor_uint8
from sslkit.core import rng
from sslkit.core.console import Console, counted
from sslkit.core.errors import UserError
from sslkit.core.value_range import Range
from sslkit.data.images.decode import MAX_PIXELS, UnreadableImage
from sslkit.data.loading.loader import evaluation_loader
from sslkit.data.sources.class_samples import sample_per_class
from sslkit.data.sources.folders import parts_of
from sslkit.data.sources.image_set import ImageSet, found_in, none_found
from sslkit.data.sources.labels import VALIDATION_SHARE
from sslkit.evaluation.dense.cells import Scenes, Tally
from sslkit.evaluation.metrics.scores import confusion

_NONE = 255
"""The value of a pixel without a class."""

_BATCH = 64


class Masked(NamedTuple):
    """Images and the files of their masks."""

    images: ImageSet
    masks: tuple[str, ...]

    def take(self, rows: Sequence[int]) -> Masked:
        return Masked(self.images.subset(rows), tuple(self.masks[row] for row in rows))


@dataclass(frozen=True)
class Segmentation:
    """Both parts; images are resized to the encoder's square as a whole, masks to its cells by majority."""

    training: Masked
    validation: Masked
    values: tuple[int, ...]  # that the masks have, ascending: value values[c] is class c
    workers: int

    name = "segmentation"
    measures = ("mean IoU", "mean IoU of cells")

    def by(self, range: Range) -> Segmentation:
        """The same images, read by this range."""
        training, validation = (
            part._replace(images=replace(part.images, range=range))
            for part in (self.training, self.validation)
        )
        return replace(self, training=training, validation=validation)

    @property
    def classes(self) -> int:
        return len(self.values)

    def scenes(self, size: int, grid: int) -> tuple[Scenes, Scenes]:
        """Of both parts, less the images that can't be read."""
        return self._scenes(self.training, size, grid), self._scenes(self.validation, size, grid)

    def _scenes(self, part: Masked, size: int, grid: int) -> Scenes:
        views, kept = [], []
        for batch, _, index in evaluation_loader(part.images, _Resized(size), _BATCH, self.workers):
            views.append(batch)
            kept.append(index)
        if sum(map(len, kept)) < 2:
            problem = f"{part.images.name}: fewer than two of {len(part.images)} images can be read"
            raise UserError(problem, "repair them, or add others with their masks")
        index = torch.cat(kept)
        cells = [majority(self._truth(part.masks[i]), grid, self.classes) for i in index.tolist()]
        return Scenes(torch.cat(views), torch.stack(cells), index)

    def _truth(self, file: str) -> Tensor:
        """Class of every pixel, int64 [H, W]; `classes` where it has none."""
        number = torch.full((256,), self.classes)
        number[list(self.values)] = torch.arange(self.classes)
        return number[torch.from_numpy(read_mask(file)).long()]

    def tallies(self, scenes: Scenes, logits: Tensor) -> tuple[Tally, ...]:
        """Of every pixel of the masks, with bilinear interpolation between cells, and of the cells."""
        side = round(logits.shape[1] ** 0.5)
        pixels, cells = [], []
        for one, truth, index in zip(logits, scenes.cells, scenes.index.tolist(), strict=True):
            mask = self._truth(self.validation.masks[index])
            seen = upsampled(one.T.reshape(-1, side, side), *mask.shape)
            pixels.append(overlap(seen.flatten(), mask.flatten(), self.classes))
            cells.append(overlap(one.argmax(1), torch.where(truth < 0, self.classes, truth), self.classes))
        return tuple(Tally(*map(torch.stack, zip(*found, strict=True))) for found in (pixels, cells))


def open_masks(data: str, limits: tuple[int, int], workers: int, seed: int, console: Console) -> Segmentation:
    """Both parts, of at most `limits` images, every mask read.

    Without a validation part a fifth of the images is held out, drawn as for class folders.

    Raises:
        UserError: a mask that is missing, of another size or not a PNG of class numbers; one class only.
    """
    training, validation = _parts(data, console)
    training, validation = (
        part.take(rng.sample(len(part.masks), limit, seed))
        for part, limit in zip((training, validation), limits, strict=True)
    )
    for part, name in ((training, "training"), (validation, "validation")):
        if len(part.masks) < 2:
            problem = f"{data}: {len(part.masks)} {name} images with masks, two or more expected"
            raise UserError(problem, "add images with their masks to that part")
    values = _values(training)
    if len(values) < 2:
        found = f"one class only ({values[0]})" if values else f"nothing but {_NONE}"
        raise UserError(f"{data}: the training masks hold {found}", "two or more class numbers are expected")
    if strange := sorted(set(_values(validation)).difference(values)):
        console.say(f"{data}: class {strange[0]} is in no training mask; its pixels are not scored")
    return Segmentation(training, validation, tuple(values), workers)


def _parts(data: str, console: Console) -> tuple[Masked, Masked]:
    """train/images and train/masks, or images/train and masks/train, or images and masks undivided."""
    parts, inside = parts_of(data), parts_of(os.path.join(data, "images"))
    if "train" in parts and os.path.isdir(os.path.join(parts["train"], "images")):
        pairs = {part: _pair(folder) for part, folder in parts.items()}
    elif "train" in inside:
        pairs = {part: _pair(data, os.path.basename(folder)) for part, folder in inside.items()}
    else:
        pairs = {"train": _pair(data)}
    training = _matched(*pairs["train"], data)
    if "val" not in pairs:
        return _divided(training)
    validation = _matched(*pairs["val"], data)
    if "train" in inside:
        everything = len(found_in(os.path.join(data, "images")).images)
        if unused := everything - len(training.masks) - len(validation.masks):
            console.say(f"{data}/images: {counted(unused, 'image')} of neither part not used")
    return training, validation


def _pair(folder: str, part: str = "") -> tuple[str, str]:
    """The folders of images and of masks."""
    images, masks = (os.path.abspath(os.path.join(folder, name, part)) for name in ("images", "masks"))
    return images, masks


def _divided(part: Masked) -> tuple[Masked, Masked]:
    """By the rule of class folders, as if all were of one class."""
    one = replace(part.images, labels=(0,) * len(part.images), classes=("",))
    held, rest = sample_per_class(one, lambda count: max(1, round(VALIDATION_SHARE * count)), 0, "split")
    place = {path: row for row, path in enumerate(part.images.paths)}
    training, validation = ([place[path] for path in images.paths] for images in (rest, held))
    return part.take(training), part.take(validation)


def _matched(images: str, masks: str, data: str) -> Masked:
    """Images and masks whose names are the same but for the ending."""
    paths = found_in(images).images
    if not len(paths):
        raise none_found(images)
    files = {_stem(file, masks): str(file) for file in sorted(Path(masks).rglob("[!.]*")) if file.is_file()}
    for path in paths:
        if _stem(Path(path), images) not in files:
            wanted = f"{_stem(Path(path), images)}.png"
            raise UserError(f"{path} has no mask", f"expected: {os.path.join(masks, wanted)}")
    return Masked(ImageSet(paths, data), tuple(files[_stem(Path(path), images)] for path in paths))


def _stem(file: Path, folder: str) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _values(part: Masked) -> list[int]:
    """All class numbers of the masks, each of which must have its image's size."""
    found: set[int] = set()
    for index, file in enumerate(part.masks):
        mask = read_mask(file)
        try:
            width, height = part.images.size(index)
        except UnreadableImage:
            continue  # left out when it is read
        if mask.shape != (height, width):
            size = f"{mask.shape[1]} x {mask.shape[0]} pixels, its image {width} x {height}"
            raise UserError(f"{file} has {size}", "masks are as large as their images")
        found.update(np.unique(mask).tolist())
    return sorted(found - {_NONE})


def read_mask(file: str) -> NDArray[np.uint8]:
    """uint8 [H, W]: the numbers in the file; of a palette the entries' numbers, not their colours.

    Raises:
        UserError: not a PNG of mode P or L.
    """
    cure = "masks are PNG files of mode P or L, their values class numbers"
    try:
        with Image.open(file, formats=("PNG",)) as image:
            if image.mode not in ("P", "L"):
                raise UserError(f"{file} is no mask of class numbers: its mode is {image.mode}", cure)
            if image.width * image.height > MAX_PIXELS:
                problem = f"{file} has {image.width} x {image.height} pixels"
                raise UserError(problem, f"{MAX_PIXELS // 2**20} megapixels at most: make both files smaller")
            return np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UserError(f"{file} can't be read as a PNG", cure) from None


@dataclass(frozen=True)
class _Resized:
    """The whole image as a square: a part that was cut off could not be scored."""

    size: int

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 [3, size, size]"""
        return to_tensor_uint8(image.resize((self.size, self.size), Image.Resampling.BICUBIC))


def majority(truth: Tensor, grid: int, classes: int) -> Tensor:
    """The most frequent class of each cell, int64 [grid²], of int64 [H, W]; -1 where that is no class.

    A pixel belongs to the cell that its upper left corner lies in; of equally frequent ones the lowest, and
    of a mask smaller than the grid the nearest pixel.
    """
    rows, columns = (_at_least(side, grid) for side in truth.shape)
    truth = truth[rows][:, columns]
    row, column = (torch.arange(side) * grid // side for side in truth.shape)
    cell = row[:, None] * grid + column
    key = (cell * (classes + 1) + truth).flatten()
    counts = torch.bincount(key, minlength=grid**2 * (classes + 1)).view(grid**2, classes + 1)
    best = counts.argmax(1)
    return torch.where(best == classes, -1, best)


def _at_least(side: int, grid: int) -> Tensor:
    """Positions 0 … side - 1, repeated where there are fewer than `grid`."""
    return torch.arange(side) if side >= grid else torch.arange(grid) * side // grid


def upsampled(logits: Tensor, height: int, width: int) -> Tensor:
    """Class of every pixel, int64 [height, width], of logits [C, g, g], in memory for two classes."""
    best, seen = torch.full((height, width), -torch.inf), torch.zeros(height, width, dtype=torch.int64)
    for number, one in enumerate(logits):
        large = F.interpolate(one[None, None], (height, width), mode="bilinear")[0, 0]
        seen = torch.where(large > best, number, seen)
        best = torch.maximum(best, large)
    return seen


def overlap(seen: Tensor, truth: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Intersection and union of every class, float64 [C]; pixels of no class (`classes`) do not count."""
    known = truth < classes
    counts = confusion(seen[known], truth[known], classes).double()
    hits = counts.diagonal()
    return hits, counts.sum(0) + counts.sum(1) - hits
