"""A set's images decoded once and kept in memory as uint8, just as the files' readers see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sslkit.core.console import Bar, Console
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.images.picture import Picture
from sslkit.data.loading.loader import data_loader
from sslkit.data.loading.workers import unbroken
from sslkit.data.sources.image_set import ImageSet

ALLOCATION = 64 * 2**20
"""Bytes that are allocated at once; pages that are not used take no memory."""

_CHUNK = 32  # images that a worker hands over at once
_ALONE = 512  # images up to which this process reads alone: others would take longer to start
_UPLOAD = 4096  # images that go to a device at once


@dataclass
class DecodedImages:
    """Images of any size in few flat blocks, which forked workers share with their parent.

    Attributes:
        sizes: int32 [N, 2], height and width; 0 where the image can't be read.
        reducible: bool [N], JPEGs: their files give large crops at a smaller scale than these pixels have.
        reasons: why an image can't be read.
        bytes: of all images.
    """

    sizes: NDArray[np.int32]
    reducible: NDArray[np.bool_]
    reasons: dict[int, str] = field(default_factory=dict)
    bytes: int = 0
    _blocks: list[Tensor] = field(default_factory=list)
    _used: int = 0  # bytes of the last block
    _place: NDArray[np.int64] = field(init=False)  # [N, 2], block and first byte in it

    def __post_init__(self) -> None:
        self._place = np.zeros((len(self.sizes), 2), np.int64)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [H, W, 3], a view of a block."""
        (block, first), (height, width) = self._place[index].tolist(), self.sizes[index].tolist()
        flat: Tensor = self._blocks[block][first : first + height * width * 3]
        return flat.view(height, width, 3)

    def equal_size(self) -> tuple[int, int] | None:
        """(height, width) of all readable images; None where they differ."""
        shapes = np.unique(self.sizes[self.sizes[:, 0] > 0], axis=0)
        return (int(shapes[0, 0]), int(shapes[0, 1])) if len(shapes) == 1 else None

    def stacked(self, height: int, width: int, device: torch.device) -> Tensor:
        """uint8 [N, 3, H, W] on the device, of images of equal size; zeros where one can't be read."""
        whole = torch.zeros(len(self.sizes), 3, height, width, dtype=torch.uint8, device=device)
        for some in np.array_split(np.flatnonzero(self.sizes[:, 0]), -(-len(self.sizes) // _UPLOAD)):
            if some.size:
                part = torch.stack([self[int(index)] for index in some]).to(device)
                whole[torch.from_numpy(some).to(device)] = part.permute(0, 3, 1, 2)
        return whole

    def release_(self) -> None:
        """Forget the images; sizes and reasons stay."""
        self._blocks.clear()

    def add_(self, first: int, chunk: _Chunk) -> None:
        """Images from number `first` on."""
        size = len(chunk.flat)
        if not self._blocks or self._used + size > len(self._blocks[-1]):
            self._blocks.append(torch.empty(max(ALLOCATION, size), dtype=torch.uint8))
            self._used = 0
        self._blocks[-1][self._used : self._used + size] = chunk.flat
        here, lengths = slice(first, first + len(chunk.sizes)), chunk.sizes.prod(1, dtype=np.int64) * 3
        self.sizes[here], self.reducible[here] = chunk.sizes, chunk.reducible
        self._place[here, 0] = len(self._blocks) - 1
        self._place[here, 1] = self._used + lengths.cumsum() - lengths
        self.reasons.update((first + position, reason) for position, reason in chunk.reasons)
        self._used += size
        self.bytes += size


def decode_all(
    images: ImageSet, limit: int, workers: int, console: Console, bar: Bar, stop: Callable[[], bool]
) -> DecodedImages | None:
    """Every image; None as soon as they turn out to need more than `limit` bytes, or when `stop` says so.

    Raises:
        WorkersLost: the processes that read images die or hang again and again.
    """
    count = len(images.paths)
    pixels = DecodedImages(np.zeros((count, 2), np.int32), np.zeros(count, np.bool_))
    chunks = [range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]

    def loader(delivered: int) -> DataLoader[Any]:
        rest = chunks[delivered:]
        return data_loader(_Whole(images), rest, _as_chunk, 0 if count <= _ALONE else workers)

    with closing(unbroken(loader, console)) as parts:
        for numbers, chunk in zip(chunks, parts, strict=True):
            if stop() or pixels.bytes + len(chunk.flat) > limit:
                return None
            pixels.add_(numbers[0], chunk)
            bar.advance(len(numbers))
    return pixels


class _Chunk(NamedTuple):
    """Some images, as a worker hands them over."""

    flat: Tensor  # uint8 [bytes], one after the other
    sizes: NDArray[np.int32]
    reducible: NDArray[np.bool_]
    reasons: list[tuple[int, str]]


class _Decoded(NamedTuple):
    pixels: NDArray[np.uint8]  # [H, W, 3]; [0, 0, 3] of one that can't be read
    reducible: bool
    reason: str = ""


@dataclass(frozen=True)
class _Whole(Dataset[_Decoded]):
    """Images as they are, without crops."""

    images: ImageSet

    def __getitem__(self, index: int) -> _Decoded:
        try:
            with self.images.from_file(index) as picture:
                return _Decoded(np.asarray(picture.rgb()), is_reducible(picture))
        except UnreadableImage as error:
            return _Decoded(np.empty((0, 0, 3), np.uint8), False, error.reason)


def is_reducible(picture: Picture) -> bool:
    """Whether its file's decoder may be asked for fewer pixels; also true of some that then give all."""
    return picture.kind.startswith(("JPEG", "MPO"))


def _as_chunk(items: Sequence[_Decoded]) -> _Chunk:
    return _Chunk(
        torch.from_numpy(np.concatenate([item.pixels.ravel() for item in items])),
        np.array([item.pixels.shape[:2] for item in items], np.int32),
        np.array([item.reducible for item in items]),
        [(position, item.reason) for position, item in enumerate(items) if item.reason],
    )
