"""A pass over all items of a training, for methods that look at them before or between epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sslkit.augmentations.crops import CenterCrop
from sslkit.core.console import SILENT, Console, counted
from sslkit.core.device import Precision, autocast, to_device
from sslkit.core.distributed import processes
from sslkit.core.distributed.collectives import rank, world_size
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.loading.loader import data_loader
from sslkit.data.loading.workers import unbroken
from sslkit.data.sources.image_set import ImageSet

_BATCH = 128


@dataclass(frozen=True)
class Look:
    """The items of a training and how they are read; what an `ImageSet` has it has too.

    Attributes:
        method: put into evaluation mode while it looks.
        size: side of the centre crops, pixels.
    """

    items: ImageSet
    method: nn.Module
    size: int
    device: torch.device
    precision: Precision = "float32"
    workers: int = 0
    seed: int = 0
    console: Console = SILENT

    def each(self, read: Callable[[Tensor], Tensor], label: str = "looking at all images") -> Tensor:
        """What `read` makes of every image: float32 [N, D] on the CPU, in the order of their indices.

        Without gradient, in evaluation mode and the run's precision. Each process reads its share, and all
        get all. The row of an image that can't be read is zero, which is said.

        Args:
            read: float [B, 3, size, size] in [0, 1] on the device → [B, D].
        """
        mine = list(range(rank(), len(self.items), world_size()))
        training = self.method.training
        self.method.eval()
        try:
            rows, unreadable = self._rows(read, mine, label)
        finally:
            self.method.train(training)
        told = processes.all_gather_objects((rows.shape[1], unreadable))
        every = torch.zeros(len(self.items), max(width for width, _ in told))
        if mine:
            every[mine] = rows
        processes.add_up(every)
        if lost := sum(count for _, count in told):
            self.console.warn(f"{counted(lost, 'image')} could not be read; no features of them are known")
        return every

    def _rows(self, read: Callable[[Tensor], Tensor], mine: list[int], label: str) -> tuple[Tensor, int]:
        batches = [mine[first : first + _BATCH] for first in range(0, len(mine), _BATCH)]
        views, found, unreadable = _Centres(self.items, self.size), [], 0
        with self.console.bar(label, len(mine)) as bar, torch.no_grad():
            loader = unbroken(lambda done: data_loader(views, batches[done:], _collate, self.workers), SILENT)
            for images, readable in loader:
                with autocast(self.device, self.precision):
                    rows = read(to_device({"image": images}, self.device)["image"]).float().cpu()
                rows[~readable] = 0
                found.append(rows)
                unreadable += int((~readable).sum())
                bar.advance(len(images))
        return (torch.cat(found) if found else torch.zeros(0, 1)), unreadable

    def __len__(self) -> int:
        return len(self.items)

    def __getattr__(self, name: str) -> Any:
        """A method file may take what it is given for the images themselves."""
        return getattr(object.__getattribute__(self, "items"), name)


@dataclass(frozen=True)
class _Centres(Dataset[tuple[Tensor, bool]]):
    """The centre of each image, and whether it could be read."""

    images: ImageSet
    size: int

    def __getitem__(self, index: int) -> tuple[Tensor, bool]:
        try:
            with self.images.opened(index) as picture:
                return CenterCrop(self.size)(picture.rgb()), True
        except UnreadableImage:
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), False


def _collate(items: list[tuple[Tensor, bool]]) -> tuple[Tensor, Tensor]:
    return torch.stack([view for view, _ in items]), torch.tensor([readable for _, readable in items])
