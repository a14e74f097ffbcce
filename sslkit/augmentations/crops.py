"""Crops and flips in the loader's workers: drawn from the size alone, then cut from one decode.

All randomness comes from the generator that the caller passes, one per (epoch, image).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.data.images.picture import Box, Cut, Picture


def random_resized_crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    random: np.random.Generator,
) -> Box:
    """A box of random area and aspect ratio, as torchvision's RandomResizedCrop draws it.

    Args:
        width, height: the image's, pixels.
        scale: bounds of the box's share of the area, uniform.
        ratio: bounds of width / height, log-uniform.

    Returns:
        (left, top, width, height); after ten draws that do not fit, the largest central box with a ratio
        within the bounds.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = math.exp(random.uniform(low, high))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(random.integers(0, width - box_width + 1))
            top = int(random.integers(0, height - box_height + 1))
            return left, top, box_width, box_height
    box_width = min(width, round(height * ratio[1]))
    box_height = min(height, round(width / ratio[0]))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def to_tensor_uint8(image: Image.Image) -> Tensor:
    """An RGB image as uint8 [3, H, W], contiguous."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class RandomResizedCrop:
    """Training view: a random box at size x size, mirrored with probability `flip` (MFM's augmentation).

    Args:
        box: `Views` hands out each view's box beside it.
    """

    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    box: bool = False

    def draw(self, width: int, height: int, random: np.random.Generator) -> Cut:
        """What to show of an image of that size, before it is decoded."""
        box = random_resized_crop_box(width, height, self.scale, self.ratio, random)
        return Cut(box, self.size, random.random() < self.flip)

    def __call__(self, picture: Picture, random: np.random.Generator) -> Tensor:
        """uint8 [3, size, size]"""
        return picture.crops([self.draw(picture.width, picture.height, random)])[0]


@dataclass(frozen=True)
class CenterCrop:
    """Evaluation view: the short side at `resize` pixels, then the central size x size.

    Args:
        resize: None is round(size / 0.875), the customary 256 for 224.
    """

    size: int
    resize: int | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 [3, size, size]; one interpolation straight from the central square of the source.

        Equal to resize-then-crop, without the intermediate image that a very long picture would make huge
        and without rounding its long side to whole pixels.
        """
        side = min(image.size) * self.size / (self.resize or round(self.size / 0.875))
        left, top = (image.width - side) / 2, (image.height - side) / 2
        view = image.resize(
            (self.size, self.size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
        return to_tensor_uint8(view)


class Views:
    """Several views of one image under names: `Views(image=crop)`, `Views(first=crop, second=crop)`.

    A crop with `box=True` adds the tensor "NAME_box", which reaches the batch as float32 [B, 5]: left, top,
    width, height in shares of the image's sides, before the view was mirrored, and 1 if it was, else 0.
    """

    def __init__(self, **views: Callable[[Picture, np.random.Generator], Tensor]) -> None:
        self.views = views

    def __call__(self, picture: Picture, random: np.random.Generator) -> dict[str, Tensor]:
        """All views, in their order; the crops are drawn first, so that the image is decoded once for all."""
        tensors: dict[str, Tensor] = {}
        cuts: dict[str, Cut] = {}
        for name, view in self.views.items():
            if isinstance(view, RandomResizedCrop):
                cuts[name] = view.draw(picture.width, picture.height, random)
                tensors[name] = _UNCUT
                if view.box:
                    tensors[f"{name}_box"] = _place(cuts[name], picture)
            else:
                tensors[name] = view(picture, random)
        return tensors | dict(zip(cuts, picture.crops(list(cuts.values())), strict=True))


_UNCUT = torch.empty(0)  # keeps a view's place in the order of names until all are cut


def _place(cut: Cut, picture: Picture) -> Tensor:
    left, top, width, height = cut.box
    shares = (left / picture.width, top / picture.height, width / picture.width, height / picture.height)
    return torch.tensor((*shares, cut.mirrored), dtype=torch.float32)
