"""Batches of a set that is decoded once and kept (`data.cache`), the very ones that its files would give.

Views are drawn by the same keyed generators from the same sizes, and cut out of the same pixels. Only what
stays in memory differs: the set in the host's, where workers read it instead of files, or, of small images
of equal size, on the device, where a whole batch is cut out at once (augmentations/batch_crops.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sslkit.augmentations.batch_crops import crop_resize_batch
from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.core import rng
from sslkit.core.console import SILENT, Console
from sslkit.core.distributed import environment
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.images.picture import Cut, Picture, reduction
from sslkit.data.loading.decoded import DecodedImages, decode_all, is_reducible
from sslkit.data.loading.loader import ViewTransform, pretraining_loader
from sslkit.data.loading.memory import free_device_memory, free_memory
from sslkit.data.sources.image_set import ImageSet

_SHARE = 4
"""One part in so many of the free memory is taken; the processes of a machine divide it."""
_SMALL = 128
"""Pixels a side up to which cutting out views is not worth a process."""

_SAMPLE = 64  # images whose headers are looked at before

Crops = dict[str, RandomResizedCrop]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where batches come from: files, or what of them is kept.

    Attributes:
        bytes: of the images that are kept; 0: the files are read.
        alone: this process cuts out views as fast as others could.
        whole: uint8 [N, 3, H, W], the images on a device; then `images` only tells where views lie.
    """

    images: ImageSet
    transform: ViewTransform
    bytes: int = 0
    alone: bool = False
    whole: Tensor | None = None

    def batches(self, workers: int, **order: Any) -> Generator[dict[str, Any], None, None]:
        """`pretraining_loader` with this source."""
        read = pretraining_loader(self.images, self.transform, workers=0 if self.alone else workers, **order)
        return read if self.whole is None else _cut_out(read, self.whole, _crops(self.transform))


def cached_loader(
    cache: str,
    device: torch.device,
    images: ImageSet,
    transform: ViewTransform,
    *,
    start_step: int,
    steps: int,
    steps_per_epoch: int,
    workers: int,
    console: Console = SILENT,
    stop: Callable[[], bool] = lambda: False,
    **order: Any,
) -> Generator[dict[str, Any], None, None]:
    """`pretraining_loader`, from memory where that pays: same images, order, pixels, and unreadable ones.

    Args:
        cache, device, stop: as for `pick_source`, which has finished before this returns.
        order: `batch_size`, `seed`, `share`, as for `pretraining_loader`.
    """
    epochs = (steps - start_step) / steps_per_epoch
    source = pick_source(cache, device, images, transform, epochs, workers, console, stop)
    return source.batches(
        workers,
        start_step=start_step,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        console=console,
        **order,
    )


def pick_source(
    cache: str,
    device: torch.device,
    images: ImageSet,
    transform: ViewTransform,
    epochs: float,
    workers: int,
    console: Console = SILENT,
    stop: Callable[[], bool] = lambda: False,
) -> Source:
    """The images decoded at once and kept; or their files, where that does not pay.

    It does not if fewer than two epochs are left, or the images would take more than their share of the free
    memory, or most views are made from JPEGs at a smaller scale, which memory does not hold.

    Args:
        cache: "memory" or "off".
        device: where small images of equal size may stay.
        stop: asked while decoding; if true, the files will be read instead.
    """
    views = _crops(transform)
    pixels = _decoded(images, views, workers, console, stop) if cache != "off" and epochs >= 2 else None
    if pixels is None:
        return Source(images=images, transform=transform)
    size = pixels.equal_size()
    small = bool(views) and size is not None and max(size) <= _SMALL
    if small and size and _fits(pixels, size, views, device):
        whole = pixels.stacked(*size, device)
        pixels.release_()
        _tell(pixels, f"on {device}", console)
        told = images.keeping(_Sketched(pixels))
        return Source(images=told, transform=transform, bytes=pixels.bytes, alone=True, whole=whole)
    _tell(pixels, "in memory", console)
    alone = small and device.type == "cpu"
    return Source(
        images=images.keeping(_InMemory(pixels)), transform=transform, bytes=pixels.bytes, alone=alone
    )


def _decoded(
    images: ImageSet, views: Crops, workers: int, console: Console, stop: Callable[[], bool]
) -> DecodedImages | None:
    """All images in memory, or None where that does not pay; headers of a sample tell before the first."""
    limit = free_memory() // _SHARE // environment.local_count()
    sizes, from_files = [], 0
    count = len(images.paths)
    for index in np.linspace(0, count - 1, min(_SAMPLE, count)).round().astype(int).tolist():
        with suppress(UnreadableImage):
            width, height = images.size(index)
            sizes.append(width * height * 3)
            random = rng.generator(0, 0, index)
            cuts = [view.draw(width, height, random) for view in views.values()]
            from_files += bool(cuts) and reduction(cuts) > 1 and _is_jpeg(images, index)
    estimate = count * statistics.fmean(sizes or [math.inf])
    if estimate > limit or 2 * from_files > len(sizes):
        return None
    label = f"decoding {count:,} images once: {estimate / 2**20:,.0f} MB in memory"
    with console.bar(label, count) as bar:
        return decode_all(images, limit, workers, console, bar, stop)


def _is_jpeg(images: ImageSet, index: int) -> bool:
    with images.from_file(index) as picture:
        return is_reducible(picture)


def _tell(pixels: DecodedImages, place: str, console: Console) -> None:
    count, taken = len(pixels.sizes) - len(pixels.reasons), pixels.bytes / 2**20
    console.say(f"{count:,} images stay decoded, {taken:,.1f} MB {place}; --cache off reads the files again")


def _crops(transform: ViewTransform) -> Crops:
    """The views by their names; none for a transform that does more than cut views out."""
    views = transform.views if isinstance(transform, Views) else {}
    crops = {name: view for name, view in views.items() if isinstance(view, RandomResizedCrop)}
    return crops if len(crops) == len(views) else {}


def _fits(pixels: DecodedImages, size: tuple[int, int], views: Crops, device: torch.device) -> bool:
    """Whether the device has room, and every view is cut out of these very pixels."""
    if device.type == "cpu":
        return False
    height, width = size
    largest = [Cut((0, 0, width, height), view.size) for view in views.values()]
    if pixels.reducible.any() and reduction(largest) > 1:
        return False
    return 3 * height * width * len(pixels.sizes) <= free_device_memory(device) // _SHARE


class _InMemory:
    """Views come from memory."""

    def __init__(self, pixels: DecodedImages) -> None:
        self.pixels = pixels

    @contextmanager
    def opened(self, images: ImageSet, index: int) -> Iterator[Picture]:
        if index in self.pixels.reasons:
            raise UnreadableImage(images.paths[index], self.pixels.reasons[index])
        with ExitStack() as files:
            yield self._picture(index, lambda: files.enter_context(images.from_file(index)))

    def _picture(self, index: int, file: Callable[[], Picture]) -> Picture:
        return _Kept(self.pixels[index].numpy(), file if self.pixels.reducible[index] else None)


class _Sketched(_InMemory):
    """Views are told, not made."""

    def _picture(self, index: int, file: Callable[[], Picture]) -> Picture:
        return _Sketch(*self.pixels.sizes[index].tolist())


class _Kept(Picture):
    """An image in memory; what its file would give at a smaller scale still comes from there.

    Args:
        file: opens it; None where it has one scale only.
    """

    def __init__(self, pixels: NDArray[np.uint8], file: Callable[[], Picture] | None) -> None:
        super().__init__(pixels)
        self._file = file
        self._smaller: Picture | None = None

    def _decoded(self, factor: int) -> tuple[Image.Image | NDArray[np.uint8], int]:
        if factor == 1 or self._file is None:
            self._file = None  # a file that is decoded in full is not decoded anew either
            return super()._decoded(1)
        self._smaller = self._smaller or self._file()
        return self._smaller._decoded(factor)


class _Sketch(Picture):
    """An image of which only the size is known: its views are crop boxes, not pixels."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width

    def crops(self, cuts: Sequence[Cut]) -> list[Tensor]:
        """int64 [5] for each cut: its box, and 1 if it is mirrored."""
        return [torch.tensor([*cut.box, cut.mirrored]) for cut in cuts]


def _cut_out(
    sketches: Generator[dict[str, Any], None, None], whole: Tensor, views: Crops
) -> Generator[dict[str, Any], None, None]:
    """Batches in which each sketched view [B, 5] has become uint8 [B, 3, S, S] on the device of `whole`."""
    with closing(sketches) as batches:
        for batch in batches:
            images = whole[_sent(batch["index"], whole.device)]
            for name, view in views.items():
                sketch = _sent(batch[name], whole.device)
                batch[name] = crop_resize_batch(images, sketch[:, :4], sketch[:, 4].bool(), view.size)
            yield batch


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; CUDA is not waited for."""
    return tensor.to(device, non_blocking=device.type == "cuda")
