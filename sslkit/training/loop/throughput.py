"""How fast the parts of a training are: its loader, its step, and both together.

Nothing is written. Measurements are interleaved, so that background load affects them equally. Images come
from where the run would have them: decoded once and kept, or from files.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import count, islice, repeat
from typing import Any, NamedTuple

import torch

from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.training.loop.cached_loader import Source, pick_source
from sslkit.training.loop.engine import Step, train
from sslkit.training.loop.intervals import seconds_of
from sslkit.training.loop.job import Job
from sslkit.training.loop.rates import DryRun, Rates
from sslkit.training.run import checkpoint
from sslkit.training.run.snapshot import snapshot

WARM = 2
"""Steps that are not timed."""


class StepTime(NamedTuple):
    """Of one turn of one side."""

    seconds: float  # per step
    wait: float = 0.0  # of these, waiting for images


class ThroughputBench:
    """A training without its folder, with one function for each side that is timed."""

    def __init__(self, job: Job, console: Console) -> None:
        self.job, self.config, self.device, self.clock = job, job.config, job.device, job.clock
        self.source, self.decoding = Source(images=job.images, transform=job.transform), 0.0
        with closing(self._batches(1, workers=0)) as batches:
            self.batch = next(batches)
        self.optimizer, self.schedule = job.optimisation(self.clock)
        # At full size: the first steps of a curriculum are its cheapest.
        self.around = None if job.around is None else job.around.at_full_size()
        self._model = self._steps(repeat(self.batch))
        self._decode(console)

    @property
    def workers(self) -> int:
        """Processes that read for the loader."""
        return 0 if self.source.alone else self.config.data.workers

    def loader(self, steps: int) -> StepTime:
        """The reading processes alone, emptied as fast as they can."""
        warm, steps = self._turn(steps)
        with closing(self._batches(warm + steps)) as batches:
            return self.timed(batches, warm, steps)

    def whole(self, steps: int) -> StepTime:
        """The engine's whole step, with images from the loader."""
        warm, steps = self._turn(steps)
        with closing(self._batches(warm + steps)) as batches:
            return self.timed(self._steps(batches), warm, steps)

    def model(self, steps: int, warm: int = 0) -> StepTime:
        """The engine's whole step, with one batch again and again."""
        return self.timed(self._model, warm, steps)

    def costs(self) -> dict[str, Any]:
        """What `Rates` says beside rates."""
        return {
            "memory": self._memory(),
            "kept": self.source.bytes,
            "decoding": self.decoding,
            "workers": self.workers,
        }

    def _decode(self, console: Console) -> None:
        """Decode the images once, where a run would do so before its first step."""
        data, began = self.config.data, time.perf_counter()
        epochs = math.inf if self.config.run.max_time else self.config.schedule.epochs
        images, transform = self.job.images, self.job.transform
        self.source = pick_source(data.cache, self.device, images, transform, epochs, data.workers, console)
        if self.source.bytes:
            self.decoding = time.perf_counter() - began

    def _memory(self) -> int:
        """Bytes: the most of the GPU's, or of this process's own, that were taken so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _turn(self, steps: int) -> tuple[int, int]:
        """Steps to warm up and steps to time: whole rounds of the workers, whose batches come in a burst."""
        workers = max(1, self.workers)
        return max(WARM, workers), -(-steps // workers) * workers

    def timed(self, steps: Iterator[Any], warm: int, count: int) -> StepTime:
        """The mean over `count` steps after `warm` others; the device is done before and after."""
        for _ in islice(steps, warm):
            pass
        self._settle()
        began = time.perf_counter()
        waits = [getattr(step, "wait", 0.0) for step in islice(steps, count)]
        self._settle()
        return StepTime((time.perf_counter() - began) / count, sum(waits) / count)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _batches(self, steps: int, workers: int | None = None) -> Any:
        return self.source.batches(
            self.workers if workers is None else workers,
            batch_size=self.config.run.batch_size,
            seed=self.config.run.seed,
            start_step=0,
            steps=steps,
            steps_per_epoch=self.clock.steps_per_epoch,
        )

    def _steps(self, batches: Iterable[dict[str, Any]]) -> Iterator[Step]:
        """The engine over these batches, without end."""
        config = self.config
        return train(
            self.job.network,
            batches,
            self.optimizer,
            self.schedule,
            (self.clock.at(step % self.clock.steps) for step in count()),
            device=self.device,
            precision=config.run.precision,
            clip=config.optim.clip,
            clip_by=config.optim.clip_by,
            micro_batch=config.run.micro_batch,
            around=self.around,
        )


def time_run(
    job: Job, console: Console, product: int, runs: int = 1, looks: float = 0.0, steps: int = 5
) -> DryRun:
    """Time a few steps of a run that is not begun, and say what all of it would take; writes nothing.

    Args:
        product: bytes that a run leaves beside checkpoints.
        runs: of that kind, one after the other.
        looks: seconds that a run takes beside its steps, for looks at other images.
    """
    bench = ThroughputBench(job, console)
    config, batch = job.config, job.config.run.batch_size
    model, loader, whole = bench.model(steps, WARM), bench.loader(steps), bench.whole(steps)
    read, fed, both = (batch / pace.seconds for pace in (loader, model, whole))
    rates = Rates(read, fed, both, bare=0.0, wait=whole.wait / whole.seconds, **bench.costs())
    kept = snapshot(job.network, bench.optimizer).bytes * (checkpoint.KEEP + 1)
    total = bench.clock.steps
    cost = 1.0 if job.around is None else job.around.cost
    hours = (bench.decoding + cost * total * whole.seconds + looks) / 3600
    if config.run.max_time:  # the clock decides, whatever was guessed
        hours = seconds_of(config.run.max_time) / 3600
        total = int(max(0.0, 3600 * hours - bench.decoding) / whole.seconds)
    return DryRun(rates, runs * total, runs * hours, kept + runs * product, rates.limit(config))


def refuse_devices(run: Any) -> None:
    """Raises UserError where several processes would train."""
    if run.devices > 1:
        cure = "leave --devices out; N of them take an Nth of the time, and what they exchange on top"
        raise UserError("--dry-run and bench time one process", cure)
