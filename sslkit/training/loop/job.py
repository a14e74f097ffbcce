"""What is trained, on what and how: everything about a training that is known before its first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from sslkit.core.device import kind
from sslkit.core.distributed import collectives, processes
from sslkit.core.errors import UserError
from sslkit.data.loading.loader import ViewTransform
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods.base import Clock
from sslkit.training.loop.around import AroundMethod
from sslkit.training.loop.optim import CosineSchedule

Optimisation = Callable[[Clock], tuple[torch.optim.Optimizer, CosineSchedule]]


@dataclass(frozen=True)
class Job:
    """One training, prepared: a run's session and the benchmarks begin with it."""

    config: Any  # a PretrainConfig or FinetuneConfig without auto
    reasons: Mapping[str, str]  # of each value that was auto
    network: (
        Any  # a method or classifier on its device: forward(batch, clock) → {"loss": …}, after_step(clock)
    )
    images: ImageSet  # of an epoch
    transform: ViewTransform
    optimisation: Optimisation
    device: torch.device
    around: AroundMethod | None = None

    @property
    def clock(self) -> Clock:
        """The clock of the first step."""
        run, schedule = self.config.run, self.config.schedule
        per_epoch = len(self.images) // run.batch_size
        return Clock(0, schedule.epochs * per_epoch, per_epoch, run.seed)


def agreed(run: Any) -> Any:
    """The section `run` with the same folder in every process, and how many there are.

    Each one's GPU is its own affair.
    """
    world = collectives.world_size()
    device = kind(run.device) if world > 1 else run.device
    return replace(run, out=processes.broadcast_object(run.out), devices=world, device=device)


def refuse_uneven(run: Any) -> None:
    """Raises UserError where a batch can't be shared by the processes alike."""
    if run.batch_size % run.devices:
        problem = f"a batch of {run.batch_size} images can't be shared by {run.devices} processes alike"
        raise UserError(problem, f"--batch-size {run.batch_size // run.devices * run.devices or run.devices}")
