"""Exchanges of tensors between processes; with one process every function is the identity.

Each process computes the mean loss of its own images, and gradients are then averaged over processes. The
functions with gradient are made for that: what a process sends collects gradient from all that received it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_apart = False
_ended: Any = None  # the last group that has ended


def end_group() -> None:
    """`destroy_process_group`, such that no process waits for itself.

    torch 2.6 joins gloo's threads while it holds Python's lock, and one of them may be waiting for that lock
    to let go of the last tensor that it has sent. So the group is let go of later, when its threads are idle:
    at the next group's end, or at the process's.
    """
    global _ended
    _ended = dist.group.WORLD
    dist.destroy_process_group()


@contextmanager
def single_process() -> Iterator[None]:
    """Run as a single process, without collectives: what may fail here alone must keep nobody waiting."""
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if not _apart and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def gather(rows: Tensor) -> Tensor:
    """[B, …] of every process → [world · B, …] in the order of ranks, without gradient."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def broadcast(values: Tensor, source: int) -> Tensor:
    """The values of the process of rank `source`, without gradient; others give a tensor of that shape."""
    if world_size() == 1:
        return values
    sent = values.clone(memory_format=torch.contiguous_format)
    dist.broadcast(sent, source)
    return sent


def gather_with_gradient(rows: Tensor) -> Tensor:
    """`gather`, and each row gets the gradients of all processes that saw it, summed."""
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def broadcast_(tensor: Tensor) -> None:
    """Make it the first process's, in every process."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over the processes, with gradient."""
    if world_size() == 1:
        return values
    summed: Tensor = _Total.apply(values)
    return summed


def all_true(flag: Tensor) -> Tensor:
    """Logical AND of a scalar over all processes, on the device and without waiting for it."""
    if world_size() == 1:
        return flag
    number = flag.float()
    dist.all_reduce(number, op=dist.ReduceOp.MIN)
    return number.bool()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        slope = slope.contiguous()
        dist.all_reduce(slope)
        return slope.chunk(world_size())[rank()]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        slope = slope.clone()
        dist.all_reduce(slope)
        return slope
