"""What a method remembers of images it has seen: read as it was before the step, written after the step.

`forward` reads buffers and notes new rows by `put`. When the optimizer's step is finished the engine calls
`settle`, which gathers the rows of all micro-batches and processes and writes them once. So a step that is
left out, or begins again because memory ran out, leaves no trace; and nothing is copied before each step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.core.distributed import collectives


class Memory(nn.Module):
    """Base of all; a subclass holds buffers and says in `write` what becomes of them."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: list[tuple[Tensor | None, Tensor]] = []

    def put(self, index: Tensor | None, rows: Tensor) -> None:
        """Note rows [B, …] of the images `index`, int64 [B], or of nobody in particular."""
        self._noted.append((index, rows.detach()))

    def forget(self) -> None:
        """What was noted in a step that counts no longer."""
        self._noted = []

    @torch.no_grad()
    def settle(self, clock: Any, finite: Tensor) -> None:
        """Write what was noted in a finished step; of several processes all write the rows of all.

        Args:
            clock: of the step.
            finite: bool on the device; if it is false everything stays, which the host does not learn.
        """
        noted, self._noted = self._noted, []
        if not noted:
            return
        rows = _gathered([row for _, row in noted])
        indices = [index for index, _ in noted if index is not None]
        self.write(_gathered(indices) if indices else None, rows, finite)

    def write(self, index: Tensor | None, rows: Tensor, finite: Tensor) -> None:
        """Rows [N, …] of the whole step, in the order of micro-batches and then of ranks."""
        raise NotImplementedError


class Queue(Memory):
    """The newest rows [size, width], first in first out (MoCo, He et al., CVPR 2020): unit rows at first.

    Attributes:
        rows: float32 [size, width].
        pointer: int64 [1], the row that is written next.
    """

    rows: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    def write(self, index: Tensor | None, rows: Tensor, finite: Tensor) -> None:
        """Over the oldest rows, round the end; of more than there is room for, the last."""
        size, count = len(self.rows), len(rows)
        places = ((self.pointer + torch.arange(count, device=rows.device)) % size)[-size:]
        _write(self.rows, places, rows[-size:], finite)
        self.pointer.copy_(torch.where(finite, (self.pointer + count) % size, self.pointer))


class Bank(Memory):
    """A row for every image [count, width], moved towards what was last seen of it (Wu et al., CVPR 2018).

    Args:
        momentum: share of the old row that stays.
        unit: rows are L2-normalised.
    """

    rows: Tensor

    def __init__(self, count: int, width: int, momentum: float = 0.5, unit: bool = True) -> None:
        super().__init__()
        self.momentum, self.unit = momentum, unit
        rows = torch.randn(count, width)
        self.register_buffer("rows", F.normalize(rows, dim=1) if unit else rows)

    def fill(self, rows: Tensor) -> None:
        """Begin with these rows [count, width]."""
        self.rows.copy_(F.normalize(rows.float(), dim=1) if self.unit else rows)

    def write(self, index: Tensor | None, rows: Tensor, finite: Tensor) -> None:
        assert index is not None, "Bank.put wants the images' indices"
        index, rows = _last_of_each(index, rows.float())
        moved = self.momentum * self.rows[index] + (1 - self.momentum) * rows
        _write(self.rows, index, F.normalize(moved, dim=1) if self.unit else moved, finite)


class Assignments(Memory):
    """A cluster for every image: int64 [count], -1 before it has one.

    Args:
        clusters: how many there are.
    """

    labels: Tensor

    def __init__(self, count: int, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters
        self.register_buffer("labels", torch.full((count,), -1))

    def fill(self, labels: Tensor) -> None:
        """Begin with these labels [count]."""
        self.labels.copy_(labels)

    def write(self, index: Tensor | None, rows: Tensor, finite: Tensor) -> None:
        assert index is not None, "Assignments.put wants the images' indices"
        index, rows = _last_of_each(index, rows)
        _write(self.labels, index, rows, finite)

    def counts(self) -> Tensor:
        """Images of each cluster, int64 [clusters]."""
        known = self.labels.clamp_min(0)
        counts = torch.zeros(self.clusters, dtype=torch.int64, device=known.device)
        return counts.index_add_(0, known, (self.labels >= 0).long())

    def weights(self, power: float) -> Tensor:
        """float32 [clusters] of a loss: counts^-power, their mean over clusters 1 (ODC: 0.5)."""
        weights = self.counts().clamp_min(1).float() ** -power
        return weights / weights.mean()


class Running(Memory):
    """A running mean of what is put: a centre, a scale (DINO, Caron et al., ICCV 2021).

    Args:
        shape: of the mean over rows.
        momentum: share of the old value that stays.
    """

    value: Tensor

    def __init__(self, *shape: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(*shape))

    def write(self, index: Tensor | None, rows: Tensor, finite: Tensor) -> None:
        new = self.momentum * self.value + (1 - self.momentum) * rows.float().mean(0)
        self.value.copy_(torch.where(finite, new, self.value))


class Centroids(Memory):
    """The mean row of each cluster, [clusters, width], made anew from a bank every few steps (ODC, 2020).

    Args:
        bank, assignments: of the same images; they are not registered a second time.
        every: steps.
    """

    rows: Tensor

    def __init__(self, bank: Bank, assignments: Assignments, every: int) -> None:
        super().__init__()
        self._of, self.every = (bank, assignments), every
        self.register_buffer("rows", torch.zeros(assignments.clusters, bank.rows.shape[1]))

    @torch.no_grad()
    def settle(self, clock: Any, finite: Tensor) -> None:
        """After bank and assignments, if they were registered before."""
        if (clock.step + 1) % self.every == 0:
            self.rows.copy_(torch.where(finite, self._means(), self.rows))

    @torch.no_grad()
    def renew(self) -> None:
        """From the bank as it is now."""
        self.rows.copy_(self._means())

    def _means(self) -> Tensor:
        """An empty cluster keeps its row."""
        bank, assignments = self._of
        counts, known = assignments.counts(), assignments.labels >= 0
        rows = bank.rows * known[:, None]
        sums = torch.zeros_like(self.rows).index_add_(0, assignments.labels.clamp_min(0), rows)
        means = sums / counts.clamp_min(1)[:, None]
        means = F.normalize(means, dim=1) if bank.unit else means
        return torch.where((counts > 0)[:, None], means, self.rows)


class EpochOrder(Memory):
    """Which images an epoch shows, in a method's own order; int64 [count], -1 behind the last."""

    images: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.full((count,), -1))

    def fill(self, order: Tensor) -> None:
        """Begin an epoch with images int64 [n], n at most the count."""
        self.images.fill_(-1)
        self.images[: len(order)] = order.to(self.images)


def _gathered(tensors: list[Tensor]) -> Tensor:
    return torch.cat([collectives.gather(tensor) for tensor in tensors])


def _write(memory: Tensor, index: Tensor, rows: Tensor, finite: Tensor) -> None:
    """memory[index] = rows, or nothing; a choice and no product, as 0 · NaN is NaN."""
    memory.index_copy_(0, index, torch.where(finite, rows.to(memory.dtype), memory[index]))


def _last_of_each(index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of an image that came twice the last row counts, whatever the order in which a device writes."""
    order = index.argsort(stable=True)
    ordered = index[order]
    last = order[torch.searchsorted(ordered, ordered, right=True) - 1]
    return ordered, rows[last]
