"""What a save holds of a run, copied to the CPU while the GPU goes on.

Each copy into ordinary memory makes the host wait, 608 times for a ViT-Ti with AdamW. Copies into pinned
memory are only begun; the stream on which the steps follow keeps their order, and who writes waits once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sslkit.data.loading.memory import free_memory
from sslkit.training.loop import generators

BLOCK = 1 << 26
"""Bytes of a piece of pinned memory. torch takes a power of two at least, and this is one."""
_SHARE = 4
"""Pinned memory can't be swapped out, so it may be one part in so many of what is free."""
_ALIGNED = 64  # bytes


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds of a method and its optimizer.

    Attributes:
        copied: an event of the device; before it the tensors may hold anything. None: they are there.
    """

    weights: dict[str, Tensor]
    rest: dict[str, Tensor]  # the optimizer's state and the random generators'
    copied: Any = None

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        return chain(self.weights.values(), self.rest.values())

    def wait(self) -> None:
        """Return when all copies are done."""
        if self.copied is not None:
            self.copied.synchronize()


class Place(NamedTuple):
    """Where a tensor lies in pinned memory."""

    block: int
    start: int  # bytes


class Room:
    """Pinned memory for the copies of one run, taken by its first save and written over by each further one.

    torch keeps what was pinned until the process ends: memory taken anew for each save would be kept as well.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._places: list[Place] = []
        self._blocks: list[Tensor] = []

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """Tensors on the CPU like these, with any values; None if so much can't be pinned."""
        sizes = [tensor.nbytes for tensor in tensors]
        if sizes != self._sizes and not self._taken(sizes):
            return None
        return [
            self._blocks[place.block][place.start : place.start + tensor.nbytes]
            .view(tensor.dtype)
            .as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride())
            for tensor, place in zip(tensors, self._places, strict=True)
        ]

    def _taken(self, sizes: list[int]) -> bool:
        places, lengths = packed(sizes)
        self._sizes, self._blocks = [], []
        if sum(lengths) > free_memory() // _SHARE:
            return False
        try:
            self._blocks = [torch.empty(n, dtype=torch.uint8, pin_memory=True) for n in lengths]
        except RuntimeError:  # a limit of the system, or none left
            return False
        self._sizes, self._places = sizes, places
        return True


def packed(sizes: Sequence[int]) -> tuple[list[Place], list[int]]:
    """A place for each of so many bytes, in blocks, and the blocks' bytes: the large ones first, each into
    the first block that has room. What is larger than a block gets one of its own."""
    places, lengths = [Place(0, 0)] * len(sizes), list[int]()
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        size = -(-sizes[index] // _ALIGNED) * _ALIGNED
        block = next((i for i, used in enumerate(lengths) if used + size <= BLOCK), len(lengths))
        lengths += [0] * (block == len(lengths))
        places[index] = Place(block, lengths[block])
        lengths[block] += size
    return places, lengths


def snapshot(method: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
    """The present state itself, which later steps change."""
    own = generators.states(generators.device_of(method))
    return Snapshot(method.state_dict(), {**_optimizer_tensors(optimizer), **own})


def copied(content: Snapshot, room: Room) -> Snapshot:
    """The same on the CPU, untouched by later steps. From a CUDA device the copies are only begun.

    Args:
        room: nothing else may use what was copied into it before.
    """
    there = {id(tensor): tensor.detach() for tensor in content.tensors() if tensor.is_cuda}
    places = room.of(list(there.values()))
    begun = {
        key: place.copy_(tensor, non_blocking=True)
        for (key, tensor), place in zip(there.items(), places or [], strict=places is not None)
    }

    def on_cpu(part: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: begun[id(t)] if id(t) in begun else t.detach().to("cpu", copy=True)
            for name, t in part.items()
        }

    return Snapshot(on_cpu(content.weights), on_cpu(content.rest), _reached() if begun else None)


def _reached() -> Any:
    """An event that tells when the device has come to what it was given so far."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # no core is busy while it waits
    event.record()
    return event


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The per-parameter state as "index.key" → tensor; the groups are rebuilt from the configuration."""
    entries = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, state in entries.items()
        for key, value in state.items()
    }
