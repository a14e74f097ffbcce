"""A picture and the crops of it: how far it may be reduced before, and the one interpolation of each view."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sslkit.data.images.numbers import Numbers

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""(left, top, width, height), pixels."""

REDUCTIONS = (8, 4, 2, 1)
"""What a JPEG can be divided by on its way out of the decoder."""

_VECTORS = torch.backends.cpu.get_cpu_capability().startswith("AVX")
"""Whether torch interpolates a pixel's three or four bytes at once; else it goes plane by plane."""


class Cut(NamedTuple):
    """What a view shows: a box of the image at size x size, mirrored or not."""

    box: Box
    size: int
    mirrored: bool = False


class Picture:
    """An upright RGB image; this one lies in memory, `decode.opened` gives one still in its file.

    Args:
        image: of mode RGB, or uint8 [H, W, 3].
    """

    def __init__(self, image: Image.Image | Pixels) -> None:
        self._image = image
        if isinstance(image, Image.Image):
            self.width, self.height = image.size
        else:
            self.height, self.width = image.shape[:2]

    kind = "RGB"
    """Format and mode of the file as Pillow names them, such as "PNG I;16"; "RGB" of what is in memory."""

    def numbers(self) -> Numbers | None:
        """What its file holds, if that has more than 8 bits a channel; else None. Raises UnreadableImage."""
        return None

    def rgb(self) -> Image.Image:
        """All of it. Raises UnreadableImage."""
        image, _ = self._decoded(1)
        return image if isinstance(image, Image.Image) else Image.fromarray(image)

    def crops(self, cuts: Sequence[Cut]) -> list[Tensor]:
        """uint8 [3, size, size] for each cut; bicubic, anti-aliased, from one decode for all of them.

        A large JPEG is decoded at a half, a quarter or an eighth of its size where each box keeps at least
        size x size pixels there; edges then lie within half a pixel of the view from where they were drawn.

        Raises:
            UnreadableImage: the file is damaged.
        """
        if not cuts:
            return []
        image, factor = self._decoded(reduction(cuts))
        return [resized(_inside(image, corners(cut.box, factor)), cut.size, cut.mirrored) for cut in cuts]

    def _decoded(self, factor: int) -> tuple[Image.Image | Pixels, int]:
        """The pixels, reduced by `factor` or by less; and by how much."""
        return self._image, 1


def reduction(cuts: Iterable[Cut]) -> int:
    """The largest of REDUCTIONS after which every box still has its size x size pixels."""
    room = min(min(cut.box[2:]) // cut.size for cut in cuts)
    return next(factor for factor in REDUCTIONS if factor <= max(room, 1))


def corners(box: Box, factor: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the box in the image reduced by `factor`, to the nearest pixel.

    Halves are rounded up, so that a box never loses a pixel by where it lies.
    """
    left, top, width, height = (2 * number for number in box)
    edges = (left, top, left + width, top + height)
    left, top, right, bottom = ((edge + factor) // (2 * factor) for edge in edges)
    return left, top, right, bottom


def resized(pixels: Pixels, size: int, mirrored: bool = False) -> Tensor:
    """The whole of `pixels`, uint8 [H, W, 3], as uint8 [3, size, size]; bicubic with anti-aliasing.

    A fourth value of each pixel is ignored. torch's kernel takes the bytes as they lie, with 16-bit weights,
    in a quarter of Pillow's time and within 2 levels of it, but for 7 values in a million: where torch runs
    the vertical pass first, an overshoot is clipped in the other order. It leaves the result channels last,
    as the strides of all four dimensions ask; making planes takes it longer than `_planes`.
    """
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    if not _VECTORS:
        image = image[:, :3].contiguous()
    view: Tensor = F.interpolate(image, (size, size), mode="bicubic", antialias=True)[0]
    return _planes(view.flip(2) if mirrored else view)


def _planes(view: Tensor) -> Tensor:
    """The first three of a view's planes, [3, S, S]; of four, [4, S, S], a word at a time is split."""
    if len(view) == 3:
        return view.contiguous()
    words = view.permute(1, 2, 0).numpy().view("<u4")[..., 0]
    planes = np.empty((3, *words.shape), np.uint8)
    for channel, plane in enumerate(planes):
        plane[:] = words >> 8 * channel  # the lowest byte of each
    return torch.from_numpy(planes)


def _inside(image: Image.Image | Pixels, corners: tuple[int, int, int, int]) -> Pixels:
    if isinstance(image, Image.Image):
        crop = image.crop(corners)
        # As Pillow keeps them: a plain copy, whose buffer is writable as nothing else holds these bytes.
        content = io.BytesIO(crop.tobytes("raw", "RGBX")).getbuffer()
        return np.frombuffer(content, np.uint8).reshape(crop.height, crop.width, 4)
    left, top, right, bottom = corners
    return image[top:bottom, left:right]
