"""The one training loop. Pre-training and fine-tuning both walk through it, step by step:

    forward → backward → clip → optimizer.step → after_step

It yields after each optimizer step; saving, logging and pictures are the caller's business, in the open.
No callbacks, and no host synchronisation: every figure stays a tensor until somebody reads it.

A loss or gradient that is not finite changes no weight. On the CPU the update is left out. Elsewhere the host
would have to wait for the device to know, so there the gradients become zero instead: the optimizer's
momentum and weight decay act once more, and nothing that is not finite reaches its state.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sslkit import distributed
from sslkit.errors import UserError
from sslkit.methods.base import Batch, Clock
from sslkit.training.device import Precision, autocast, to_device
from sslkit.training.optim import CosineSchedule, clip_gradients_

_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # newer torch warns of the older name
    if name in inspect.signature(DistributedDataParallel).parameters
)


class OutOfMemory(UserError):
    """There is too little memory for a step.

    Attributes:
        at_once: images in memory with which it may go on; 0: none are few enough.
    """

    def __init__(self, message: str, hint: str, at_once: int = 0) -> None:
        super().__init__(message, hint, code=1)
        self.at_once = at_once


@dataclass(frozen=True)
class Step:
    """What one optimizer step left behind; tensors stay on the device."""

    clock: Clock  # of this step: clock.step is the index of the finished update
    metrics: dict[str, Tensor]  # "loss" and the method's other scalars, means over the micro-batches
    embedding: Tensor | None  # [B, D]
    grad_norm: Tensor  # before clipping
    lr: float  # the largest of the groups
    wait: float  # seconds spent waiting for the batch
    bad: list[tuple[str, str]]  # unreadable images met: (path, reason)
    finite: Tensor = field(default_factory=lambda: torch.tensor(True))  # else the update was left out
    index: Tensor | None = None  # int64 [B], the batch's images
    micro_batch: int = 0  # images at once in memory; 0: the whole batch


def train(
    method: Any,
    batches: Iterable[dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    schedule: CosineSchedule,
    clocks: Iterable[Clock],
    *,
    device: torch.device,
    precision: Precision = "float32",
    clip: float = 0.0,
    clip_by: str = "all",
    micro_batch: int = 0,
) -> Iterator[Step]:
    """Train while there are `clocks`, one yielded `Step` per update.

    Of several processes each trains on its part of every batch; gradients are averaged, so that all make the
    same step.

    Args:
        method: a module with `forward(batch, clock) -> {"loss": …}` and `after_step(clock)`.
        batches: one per clock.
        clip: norm to which gradients are clipped, of "all" or of each "tensor"; 0: never.
        micro_batch: images at once in memory, gradients are accumulated; 0: the whole batch. Losses that
            pool over the batch (MFM's) are then pooled over the micro-batch. It is halved for good when
            memory runs out; the batch of a step stays what it is.

    Raises:
        OutOfMemory: even for the method's smallest batch; or, with several processes, in one of them, as the
            others already wait for its gradients.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    source = iter(batches)
    module = together(method, device)
    method.train()
    for now in clocks:
        asked = time.perf_counter()
        batch = next(source)
        wait = time.perf_counter() - asked
        schedule.apply(now.step)
        moved, whole = to_device(batch, device), len(batch["index"])
        parts = split(moved, micro_batch)
        while (outputs := accumulated(module, parts, now, device, precision)) is None:
            optimizer.zero_grad(set_to_none=True)
            micro_batch = smaller(micro_batch or whole, whole, getattr(method, "minimum_batch", 1))
            if distributed.world() > 1:
                me = f"process {distributed.rank()} of {distributed.world()}, step {now.step + 1}"
                tried = f"out of memory with {len(parts[0]['index'])} images at once"
                cure = f"--resume goes on with {micro_batch} at once; the batch of a step stays"
                raise OutOfMemory(f"{me}: {tried}", cure, micro_batch)
            parts = split(moved, micro_batch)
        grad_norm = clip_gradients_(parameters, clip, clip_by)
        metrics, embedding = _gathered(outputs, [len(part["index"]) / whole for part in parts])
        finite = distributed.agreed(grad_norm.isfinite() & metrics["loss"].isfinite())
        updates = True
        if device.type == "cpu":
            updates = bool(finite)
        else:
            _zero_unless_(finite, parameters)
        if updates:
            _update(optimizer)
        optimizer.zero_grad(set_to_none=True)
        if updates:
            method.after_step(now)
        rate = max(group["lr"] for group in optimizer.param_groups)
        yield Step(
            now,
            metrics,
            embedding,
            grad_norm.detach(),
            rate,
            wait,
            batch.get("bad", []),
            finite.detach(),
            batch["index"],
            micro_batch,
        )


def together(method: Any, device: torch.device) -> Any:
    """The method as it is, or with gradients that are averaged over the processes while they are computed."""
    if distributed.world() == 1:
        return method
    # Kernels of 1 × 1 have two equal memory layouts, and torch takes note of which one a gradient has.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    options: dict[str, Any] = {_BUFFERS: False}  # batch norms' statistics are their own, or shared already
    return DistributedDataParallel(
        method,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=getattr(method, "rests", False),
        **options,
    )


def split(batch: Batch, size: int) -> list[Batch]:
    """A batch as micro-batches of `size` images; 0 leaves it whole."""
    count = len(batch["index"])
    if size <= 0 or size >= count:
        return [batch]
    return [
        {name: value[start : start + size] for name, value in batch.items()}
        for start in range(0, count, size)
    ]


def smaller(size: int, whole: int, minimum: int) -> int:
    """About half of `size` images at once, such that no part of a batch of `whole` is under `minimum`.

    Raises:
        OutOfMemory: there is no such number.
    """
    for half in range(-(-size // 2), max(minimum, 1) - 1, -1):
        if half < size and (whole % half == 0 or whole % half >= minimum):
            return half
    raise OutOfMemory(
        f"out of memory with {size} of {whole} images at once, and fewer are impossible",
        "a smaller --size or --backbone, or --precision bfloat16",
    )


def accumulated(
    module: Any, parts: list[Batch], clock: Clock, device: torch.device, precision: Precision
) -> list[dict[str, Tensor]] | None:
    """The gradients of all parts, added up; None if memory ran out on the way.

    Processes exchange gradients once, in the last part.
    """
    whole = sum(len(part["index"]) for part in parts)
    alone = [getattr(module, "no_sync", nullcontext)] * (len(parts) - 1) + [nullcontext]
    outputs = []
    try:
        for part, context in zip(parts, alone, strict=True):
            with context():
                outputs.append(_backward(module, part, clock, device, precision, whole))
        return outputs
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as problem:
        _require_memory_problem(problem)
    if device.type == "cuda":  # only here, when the exception and the graph that it held are gone
        torch.cuda.empty_cache()
    return None


def _update(optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer, whose own memory is taken in the first one.

    Raises:
        UserError: memory ran out; not OutOfMemory, as some weights may have moved and must not be saved.
    """
    try:
        optimizer.step()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as problem:
        _require_memory_problem(problem)
        cure = "a smaller --backbone, or -s optim.name=sgd, which keeps one number a weight instead of two"
        raise UserError("out of memory in the optimizer's step", cure, code=1) from None


def _require_memory_problem(problem: Exception) -> None:
    """Raise it again if it is another one; the CPU's allocator raises a RuntimeError."""
    runtime = isinstance(problem, RuntimeError) and not isinstance(problem, torch.OutOfMemoryError)
    if runtime and "can't allocate memory" not in str(problem):
        raise problem


def _zero_unless_(finite: Tensor, parameters: list[torch.nn.Parameter]) -> None:
    """Replace all gradients by zeros on the device if `finite` says no; a product would keep the NaN."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.where(finite, 0.0)


def _backward(
    module: Any, batch: Batch, clock: Clock, device: torch.device, precision: Precision, whole: int
) -> dict[str, Tensor]:
    """One micro-batch's gradients, by its share of `whole` images, added to `.grad`; returns the outputs."""
    with autocast(device, precision):
        outputs: dict[str, Tensor] = module(batch, clock)
    (outputs["loss"] * (len(batch["index"]) / whole)).backward()  # type: ignore[no-untyped-call]
    return {name: value.detach() for name, value in outputs.items()}


def _gathered(
    outputs: list[dict[str, Tensor]], shares: list[float]
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Scalars as means weighted by the micro-batches' shares, embeddings as one."""
    metrics = {
        name: mean(name, [out[name].float() for out in outputs], shares)
        for name in outputs[0]
        if name != "embedding"
    }
    embeddings = [out["embedding"] for out in outputs if "embedding" in out]
    return metrics, torch.cat(embeddings) if embeddings else None


def mean(name: str, values: list[Tensor], shares: list[float] | None = None) -> Tensor:
    """The mean of a metric. A task may be absent (NaN) and is left out, but a loss that is NaN must show."""
    stacked = torch.stack(values)
    # Filled on the device: a tensor made of Python's numbers would be copied there, and wait for it.
    shares = shares or [1.0] * len(values)
    weights = torch.stack([torch.full_like(v, share) for v, share in zip(values, shares, strict=True)])
    if name.startswith("loss_"):
        weights = weights.where(~stacked.isnan(), 0)
        stacked = stacked.nan_to_num()
    return (stacked * weights).sum() / weights.sum()
