"""The one training loop. Pre-training and fine-tuning both walk through it, step by step:

    forward → backward → clip → optimizer.step → memories written → after_step

It yields after each optimizer step; saving, logging and pictures are the caller's business, in the open.
No callbacks, and no host synchronisation: every figure stays a tensor until somebody reads it.

A loss or gradient that is not finite changes no weight and no buffer: the update is left out. On the CPU the
host looks; elsewhere it would have to wait for the device to know, and the optimizer gets the flag instead
(`update_if`), as do the buffers.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sslkit.core.device import Precision, autocast, to_device
from sslkit.core.distributed import collectives, processes
from sslkit.core.errors import UserError
from sslkit.methods.base import Batch, Clock
from sslkit.training.loop.batch_norm_check import one_value
from sslkit.training.loop.loss_scaling import scaled, scaler_for, spared
from sslkit.training.loop.optim import CosineSchedule, clip_gradients_, update_if
from sslkit.training.loop.out_of_memory import Buffers, OutOfMemory, fewer

Around = Callable[[Any, Batch, Clock, torch.device, Precision], Batch]
"""(method, batch on the device, clock, device, precision) → the batch, coloured and changed."""

_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # newer torch warns of the older name
    if name in inspect.signature(DistributedDataParallel).parameters
)


OF_IMAGES = ("embedding", "per_image")
"""Outputs that are no scalars."""


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
    finite: Tensor = field(default_factory=lambda: torch.tensor(True))  # else the update was left out;
    # in float16 a gradient that overflowed by its scale counts as finite, though its update is left out too
    index: Tensor | None = None  # int64 [B], the batch's images
    micro_batch: int = 0  # images at once in memory; 0: the whole batch
    per_image: Tensor | None = None  # [B], in the order of `index`


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
    scaler: torch.amp.GradScaler | None = None,
    around: Around | None = None,
) -> Iterator[Step]:
    """Train while there are `clocks`, one yielded `Step` per update.

    With several processes each trains on its part of every batch; gradients are averaged, so that all make
    the same step.

    Args:
        method: a module with `forward(batch, clock) -> {"loss": …}` and `after_step(clock)`.
        batches: one per clock.
        clip: norm to which gradients are clipped, of "all" or of each "tensor"; 0: never.
        micro_batch: images at once in memory, gradients are accumulated; 0: the whole batch. Losses that
            pool over the batch (MFM's) are then pooled over the micro-batch. It is halved for good when
            memory runs out; the batch of a step stays what it is.
        scaler: of float16, for those who save its state; without one it begins anew.
        around: what happens to a whole batch between the method's colours and `forward`.

    Raises:
        OutOfMemory: even for the method's smallest batch; or, with several processes, in one of them, as the
            others already wait for its gradients. Weights and buffers are those of the last finished step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    source = iter(batches)
    module, buffers = _together(method, device), Buffers(method)
    scaler = scaler or scaler_for(precision, device)
    method.train()
    for now in clocks:
        asked = time.perf_counter()
        batch = next(source)
        wait = time.perf_counter() - asked
        schedule.apply(now.step)
        with buffers.kept(now):
            moved, whole = to_device(batch, device), len(batch["index"])
            if around is not None:
                moved = around(method, moved, now, device, precision)
            parts = split(moved, micro_batch)
            colours = around is None
            while (outputs := accumulated(module, parts, now, device, precision, scaler, colours)) is None:
                optimizer.zero_grad(set_to_none=True)
                buffers.restore_()
                micro_batch = fewer(len(parts[0]["index"]), whole, method, now)
                parts = split(moved, micro_batch)
            if scaler is not None:
                scaler.unscale_(optimizer)
            grad_norm = clip_gradients_(parameters, clip, clip_by)
            metrics, of_images = _gathered(outputs, [len(part["index"]) / whole for part in parts])
            finite = collectives.all_true(grad_norm.isfinite() & metrics["loss"].isfinite())
        _update(optimizer, method, now, finite, buffers)
        if scaler is not None:
            finite = spared(finite, metrics["loss"], scaler)
            scaler.update()
        rate = max(group["lr"] for group in optimizer.param_groups)
        yield Step(
            now,
            metrics,
            of_images.get("embedding"),
            grad_norm.detach(),
            rate,
            wait,
            batch.get("bad", []),
            finite.detach(),
            batch["index"],
            micro_batch,
            of_images.get("per_image"),
        )


def _together(method: Any, device: torch.device) -> Any:
    """The method, in DistributedDataParallel where several processes train."""
    if collectives.world_size() == 1:
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


def accumulated(
    module: Any,
    parts: list[Batch],
    clock: Clock,
    device: torch.device,
    precision: Precision,
    scaler: torch.amp.GradScaler | None = None,
    colours: bool = True,
) -> list[dict[str, Tensor]] | None:
    """The gradients of all parts, added up, scaled if there is a scaler; None if memory ran out on the way.

    Processes exchange gradients once, in the last part.

    Args:
        colours: the method's own are still to be drawn.
    """
    whole = sum(len(part["index"]) for part in parts)
    alone = [getattr(module, "no_sync", nullcontext)] * (len(parts) - 1) + [nullcontext]
    outputs = []
    try:
        for part, context in zip(parts, alone, strict=True):
            with context():
                outputs.append(_backward(module, part, clock, device, precision, whole, scaler, colours))
        return outputs
    except Exception as problem:
        if one_value(problem):  # of a batch that was halved where memory ran out
            here = processes.here(clock.step + 1)
            told = f"{here}out of memory, and one image at once leaves batch norm one value per channel"
            raise OutOfMemory(told, processes.LESS) from None
        if not processes.memory_ran_out(problem):
            raise
    if device.type == "cuda":  # only here, when the exception and the graph that it held are gone
        torch.cuda.empty_cache()
    return None


def _update(
    optimizer: torch.optim.Optimizer, method: Any, clock: Clock, finite: Tensor, buffers: Buffers
) -> None:
    """The end of a step: the optimizer, which allocates its state in the first one, and `after_step`.

    Of a step that is not finite no buffer keeps anything either: a statistic, a queue or a centre that took
    a NaN would never lose it.

    Raises:
        UserError: memory ran out; not OutOfMemory, as some weights may have moved and must not be saved.
    """
    try:
        updated = update_if(finite, optimizer)
        optimizer.zero_grad(set_to_none=True)
        if not updated:
            buffers.restore_()
            return
        buffers.settle(clock, finite)
        method.after_step(clock)
        if finite.device.type != "cpu":
            buffers.restore_unless_(finite)  # after `after_step`, which may carry a NaN into another buffer
    except Exception as problem:
        if not processes.memory_ran_out(problem):
            raise
        cure = "a smaller --backbone, or -s optim.name=sgd, which keeps one number a weight instead of two"
        here = processes.here(clock.step + 1)
        raise UserError(f"{here}out of memory in the optimizer's step", cure, code=1) from None


def _backward(
    module: Any,
    batch: Batch,
    clock: Clock,
    device: torch.device,
    precision: Precision,
    whole: int,
    scaler: torch.amp.GradScaler | None,
    colours: bool,
) -> dict[str, Tensor]:
    """One micro-batch's gradients, by its share of `whole` images, added to `.grad`; returns the outputs."""
    with autocast(device, precision):
        if colours and (coloured := getattr(getattr(module, "module", module), "coloured", None)):
            batch = coloured(batch, clock)
        outputs: dict[str, Tensor] = module(batch, clock)
    loss = outputs["loss"] * (len(batch["index"]) / whole)
    scaled(loss, scaler).backward()  # type: ignore[no-untyped-call]
    return {name: value.detach() for name, value in outputs.items()}


def _gathered(
    outputs: list[dict[str, Tensor]], shares: list[float]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scalars as means weighted by the micro-batches' shares; what is of images one after the other."""
    metrics = {
        name: mean(name, [out[name].float() for out in outputs], shares)
        for name in outputs[0]
        if name not in OF_IMAGES
    }
    rows = {name: torch.cat([out[name] for out in outputs]) for name in OF_IMAGES if name in outputs[0]}
    return metrics, rows


def mean(name: str, values: list[Tensor], shares: list[float] | None = None) -> Tensor:
    """The mean of a metric. A task may be absent (NaN) and is left out, but a loss that is NaN must show."""
    if len(values) == 1:
        return values[0]
    stacked = torch.stack(values)
    # Filled on the device: a tensor made of Python's numbers would be copied there, and wait for it.
    shares = shares or [1.0] * len(values)
    weights = torch.stack([torch.full_like(v, share) for v, share in zip(values, shares, strict=True)])
    if name.startswith("loss_"):
        weights = weights.where(~stacked.isnan(), 0)
        stacked = stacked.nan_to_num()
    return (stacked * weights).sum() / weights.sum()
