"""From an image set to batches: the same images and the same pixels for any number of workers.

What a batch holds is a function of (seed, step) alone, so that a resumed run starts at its very step
without replaying what came before.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from sslkit.core import rng
from sslkit.core.config.validate import checked
from sslkit.core.console import SILENT, Console
from sslkit.core.errors import UserError
from sslkit.core.user_modules import Portable
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.images.picture import Picture
from sslkit.data.loading.workers import LOOK, unbroken
from sslkit.data.sources.image_set import ImageSet

ViewTransform = Callable[[Picture, np.random.Generator], Mapping[str, Tensor]]
Bad = list[tuple[str, str]]
"""(path, reason) of images that could not be read."""
Share = tuple[int, int]
"""(which, of how many) equal parts of every batch: that of one of several processes."""

_REPLACEMENT_TRIES = 20
_PREFETCH = 4  # batches ready per worker: enough to even out slow images, small beside the model's memory


class ViewDataset(Dataset[dict[str, Any]]):
    """The views of one image in one epoch, addressed by (epoch, index).

    An item holds the transform's tensors, "index" (int, the image it really is) and "bad" (what could not
    be read on the way). An unreadable image is replaced by another one, always the same for the same seed,
    epoch and index; an item without any tensor is one for which no replacement was found.
    """

    def __init__(self, images: ImageSet, transform: ViewTransform, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        bad: Bad = []
        for candidate in self._candidates(epoch, index):
            try:
                with self.images.opened(candidate) as picture:
                    views = self.transform(picture, rng.generator(self.seed, epoch, candidate))
            except UnreadableImage as error:
                bad.append((error.path, error.reason))
                continue
            return {**views, "index": candidate, "bad": bad}
        return {"bad": bad}

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        random = rng.generator(self.seed, epoch, index, "replacement")
        for _ in range(_REPLACEMENT_TRIES):
            yield int(random.integers(len(self.images)))


@dataclass(frozen=True)
class KeyedBatches:
    """Batch sampler: step → [(epoch, index), …], from `start_step` to `steps`, each epoch a new order.

    What is left over at an epoch's end, fewer images than a batch, waits for the next order.
    """

    count: int
    batch_size: int
    seed: int
    start_step: int
    steps: int
    steps_per_epoch: int
    share: Share = (0, 1)
    order: NDArray[np.int64] | None = None  # of the one epoch whose steps are asked for; None: the keyed one

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.steps_per_epoch < 1 or self.start_step < 0:
            raise ValueError(f"batch_size, steps_per_epoch >= 1 and start_step >= 0 expected, got {self}")
        if self.batch_size % self.share[1]:
            raise ValueError(f"a batch of {self.batch_size} has no {self.share[1]} equal parts")
        if self.steps_per_epoch * self.batch_size > self.count:
            raise ValueError(
                f"an epoch of {self.steps_per_epoch} x {self.batch_size} exceeds {self.count} images"
            )

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        part, parts = self.share
        size = self.batch_size // parts
        for step in range(self.start_step, self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            first = position * self.batch_size + part * size
            if self.order is None:
                chosen = rng.permutation(self.count, self.seed, epoch, first, first + size)
            else:
                chosen = self.order[first : first + size]
            yield [(epoch, int(index)) for index in chosen]


def pretraining_loader(
    images: ImageSet,
    transform: ViewTransform,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    steps: int,
    steps_per_epoch: int,
    workers: int,
    console: Console = SILENT,
    share: Share = (0, 1),
    order: NDArray[np.int64] | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Batches of steps `start_step` … `steps` - 1.

    Args:
        transform: worker side; (picture, its generator) → named uint8 views. Must be picklable.
        steps_per_epoch: at most len(images) // batch_size; the rest of an epoch is dropped.
        workers: processes that decode; 0 decodes in this one.
        share: the part of each batch that is wanted; `batch_size` is that of the whole.
        order: the images of an epoch one after the other, where a method has an order of its own.

    Returns:
        A generator of dicts, whose `close` ends the workers: the transform's tensors stacked to
        [B, ...], "index" int64 [B], and "bad": (path, reason) of every failed read behind this batch. A
        path may come again in later batches.

    Raises:
        UserError: while iterating, when an image and all its replacements are unreadable.
        WorkersLost: while iterating, when workers die or hang again and again at one batch. Before that they
            are started anew there, with a warning.
    """
    views = ViewDataset(images, transform, seed)
    KeyedBatches(len(images), batch_size, seed, start_step, steps, steps_per_epoch, share)  # refuses at once

    def loader(delivered: int) -> DataLoader[Any]:
        first = start_step + delivered
        batches = KeyedBatches(len(images), batch_size, seed, first, steps, steps_per_epoch, share, order)
        return data_loader(views, batches, _collate_views, workers)

    return _checked(images.name, unbroken(loader, console))


def evaluation_loader(
    images: ImageSet, transform: Callable[[Image.Image], Tensor], batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """One pass over all images, in order.

    Yields:
        (views uint8 [B, 3, H, W], labels int64 [B] or None, index int64 [B]). Unreadable images are missing
        from all three: what the indices leave out could not be read. B may vary; it is never 0.

    Raises:
        UserError: fewer than no workers.
    """
    checked("--workers", workers, int, {"low": 0})
    order = range(len(images))
    batches = [list(order[first : first + batch_size]) for first in range(0, len(order), batch_size)]
    labels = None if images.labels is None else torch.tensor(images.labels, dtype=torch.int64)
    dataset = _Ordered(images, transform)

    def loader(delivered: int) -> DataLoader[Any]:
        return data_loader(dataset, batches[delivered:], _collate_readable, workers)

    for views, index in unbroken(loader, SILENT):
        if len(index):
            yield views, None if labels is None else labels[index], index


@dataclass(frozen=True)
class _Ordered(Dataset[tuple[Tensor, int] | None]):
    """Image `index` transformed, with its index; None when it can't be read."""

    images: ImageSet
    transform: Callable[[Image.Image], Tensor]

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        try:
            return self.transform(self.images.read(index)), index
        except UnreadableImage:
            return None


def data_loader(
    dataset: Dataset[Any], batches: Any, collate: Callable[[list[Any]], Any], workers: int
) -> DataLoader[Any]:
    """torch's loader with the arguments that all loaders of images here share."""
    with warnings.catch_warnings():
        # The user asked for more workers than cores, and the warning names arguments of torch's.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        return DataLoader(
            _Sent(dataset) if workers else dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=_start_worker,
            prefetch_factor=_PREFETCH if workers else None,
            # The device was opened before any loader, by its first tensor; one on the CPU must not open one.
            pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
            timeout=LOOK if workers else 0,
            # Its own generator: DataLoader would otherwise take a number from the global one, which is saved
            # and restored with a run.
            generator=torch.Generator().manual_seed(0),
        )


class _Sent(Portable, Dataset[Any]):
    """A data set that a worker can unpickle where it is not forked: it may be of one's own file."""

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches the whole process group, but only the main process decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):  # "save now", not "die"
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # SIGTERM stays as torch has set it: a worker ends quietly when its parent asks.
    torch.set_num_threads(1)


def _collate_views(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    bad = [entry for item in items for entry in item["bad"]]
    if any("index" not in item for item in items):
        return {"bad": bad}
    tensors = [{name: value for name, value in item.items() if name != "bad"} for item in items]
    return {**default_collate(tensors), "bad": bad}


def _collate_readable(items: Sequence[tuple[Tensor, int] | None]) -> tuple[Tensor, Tensor]:
    readable = [item for item in items if item is not None]
    if not readable:
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    views, index = default_collate(readable)
    return views, index


def _checked(name: str, batches: Iterator[Any]) -> Generator[dict[str, Any], None, None]:
    """An exception does not pass through a worker unchanged: an empty batch stands for it up to here."""
    for batch in batches:
        if "index" not in batch:
            path, reason = batch["bad"][0]
            raise UserError(
                f"{name}: {_REPLACEMENT_TRIES + 1} images in a row can't be read, such as {path}: {reason}",
                hint="look at the files; sslkit skips single damaged ones, not a damaged set",
                code=1,
            )
        yield batch
