"""How fast the parts of a training run are: loader, bare backbone, model, and all together.

`dry_run` looks at a run before it begins (`pretrain --dry-run`), `measure` compares the parts (`bench`).
Nothing is written. Measurements are interleaved, so that background load affects them equally. Images come
from where the run would have them: decoded once and kept, or from files.
"""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count, islice, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import SILENT, Console
from sslkit.core.device import autocast, pick_device, to_device
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods.base import Clock
from sslkit.training.loop.acceleration import accelerate_, fitted
from sslkit.training.loop.cached_loader import Source, pick_source
from sslkit.training.loop.engine import Step, train
from sslkit.training.loop.flops import counted_flops, peak_flops
from sslkit.training.loop.optim import build_optimizer, parameter_groups, pretraining
from sslkit.training.pretrain.auto import USUAL_WARMUP, Resolved, refuse_times, resolve, seconds_of
from sslkit.training.pretrain.beginning import check, started
from sslkit.training.pretrain.fastest import measured
from sslkit.training.pretrain.image_range import open_with_range
from sslkit.training.pretrain.intervals import refuse_longer_than_run
from sslkit.training.pretrain.pictures import PICTURED
from sslkit.training.pretrain.rates import DryRun, Rates
from sslkit.training.run import checkpoint
from sslkit.training.run.folder import build_encoder, refuse_place
from sslkit.training.run.progress import announce
from sslkit.training.run.snapshot import snapshot

WARM = 2
"""Steps that are not timed."""
_ROUNDS = 3
"""Turns that each side gets in `measure`; medians are over these."""
PICTURE_COLUMNS = 4


class StepTime(NamedTuple):
    """Of one turn of one side."""

    seconds: float  # per step
    wait: float = 0.0  # of these, waiting for images


class ThroughputBench:
    """Everything of a run but its folder, with one function for each side that is timed."""

    def __init__(
        self,
        ready: Resolved,
        images: ImageSet,
        device: torch.device,
        console: Console,
        with_bare: bool = False,
    ) -> None:
        self.device = device
        self.method = started(ready, images, device, console).train()
        config = self.config = ready.config
        self.images = self.method.dataset(images)
        self.source, self.decoding = Source(images=self.images, transform=self.method.transform()), 0.0
        per_epoch = len(self.images) // config.run.batch_size
        self.clock = Clock(0, config.schedule.epochs * per_epoch, per_epoch, config.run.seed)
        with closing(self._batches(1, workers=0)) as batches:
            self.batch = next(batches)
        self.flops = self.bare_flops = 0.0
        if with_bare:
            self.encoder = build_encoder(config).to(device)
            self._count()  # before compiling: compiled products are not seen
            accelerate_(self.encoder, config, device)
            self._bare = self._bare_steps()
        accelerate_(self.method, config, device)
        self.config = config = fitted(ready, self.method, images, device).config
        self.optimizer, self.schedule = pretraining(self.method, config, self.clock)
        self._model = self._steps(repeat(self.batch))

    @property
    def workers(self) -> int:
        """Processes that read for the loader."""
        return 0 if self.source.alone else self.config.data.workers

    def decode(self, console: Console) -> None:
        """Decode the images once, where a run would do so before its first step."""
        data, began = self.config.data, time.perf_counter()
        epochs = math.inf if self.config.run.max_time else self.config.schedule.epochs
        transform = self.method.transform()
        self.source = pick_source(
            data.cache, self.device, self.images, transform, epochs, data.workers, console
        )
        if self.source.bytes:
            self.decoding = time.perf_counter() - began

    def loader(self, steps: int) -> StepTime:
        """The reading processes alone, emptied as fast as they can."""
        warm, steps = self._turn(steps)
        with closing(self._batches(warm + steps)) as batches:
            return self._timed(batches, warm, steps)

    def whole(self, steps: int) -> StepTime:
        """The engine's whole step, with images from the loader."""
        warm, steps = self._turn(steps)
        with closing(self._batches(warm + steps)) as batches:
            return self._timed(self._steps(batches), warm, steps)

    def model(self, steps: int, warm: int = 0) -> StepTime:
        """The engine's whole step, with one batch again and again."""
        return self._timed(self._model, warm, steps)

    def bare(self, steps: int, warm: int = 0) -> StepTime:
        """The backbone alone: forward, the mean of its features as loss, backward, optimizer."""
        return self._timed(self._bare, warm, steps)

    def costs(self) -> dict[str, Any]:
        """What `Rates` says beside rates."""
        return {
            "memory": self._memory(),
            "kept": self.source.bytes,
            "decoding": self.decoding,
            "workers": self.workers,
            "flops": self.flops,
            "bare_flops": self.bare_flops,
        }

    def _memory(self) -> int:
        """Bytes: the most of the GPU's, or of this process's own, that were taken so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _turn(self, steps: int) -> tuple[int, int]:
        """Steps to warm up and steps to time: whole rounds of the workers, whose batches come in a burst."""
        workers = max(1, self.workers)
        return max(WARM, workers), -(-steps // workers) * workers

    def _timed(self, steps: Iterator[Any], warm: int, count: int) -> StepTime:
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
            self.method,
            batches,
            self.optimizer,
            self.schedule,
            (self.clock.at(step % self.clock.steps) for step in count()),
            device=self.device,
            precision=config.run.precision,
            clip=config.optim.clip,
            clip_by=config.optim.clip_by,
            micro_batch=config.run.micro_batch,
        )

    def _bare_steps(self) -> Iterator[None]:
        config, encoder = self.config, self.encoder.train()
        images = self._noise(config.run.batch_size)
        optimizer = build_optimizer(
            parameter_groups(encoder, config.optim.weight_decay, {}), config.optim, lr=1e-6
        )
        while True:
            with autocast(self.device, config.run.precision):
                loss = encoder.vector(images).float().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield

    def _count(self) -> None:
        """What two images cost in the method and in the backbone, for one."""
        few = {name: value[:2] for name, value in to_device(self.batch, self.device).items()}
        images = self._noise(2)
        self.flops = counted_flops(lambda: self.method(few, self.clock)["loss"]) / 2
        self.bare_flops = counted_flops(lambda: self.encoder.vector(images).mean()) / 2
        self.method.zero_grad(set_to_none=True)
        self.encoder.zero_grad(set_to_none=True)

    def _noise(self, number: int) -> Tensor:
        return torch.rand(number, 3, self.config.data.size, self.config.data.size, device=self.device)


def dry_run(config: PretrainConfig, console: Console = SILENT, steps: int = 5) -> DryRun:
    """Time a few steps of a run that is not begun, and say what all of it would take; writes nothing.

    Raises:
        UserError: anything that `pretrain` would refuse before its first step.
    """
    refuse_place(config.run.out)
    bench = prepare_bench(config, console)
    config, batch = bench.config, bench.config.run.batch_size
    model, loader, whole = bench.model(steps, WARM), bench.loader(steps), bench.whole(steps)
    read, fed, both = (batch / pace.seconds for pace in (loader, model, whole))
    rates = Rates(read, fed, both, bare=0.0, wait=whole.wait / whole.seconds, **bench.costs())
    kept = snapshot(bench.method, bench.optimizer).bytes * (checkpoint.KEEP + 1)
    encoder = sum(tensor.nbytes for tensor in bench.method.encoder.model.state_dict().values())
    picture = 3 * PICTURED * PICTURE_COLUMNS * config.data.size**2  # at most: PNG packs them
    disk = kept + encoder + picture * config.run.pictures
    total = bench.clock.steps
    hours = (bench.decoding + total * whole.seconds) / 3600
    if config.run.max_time:  # the clock decides, whatever was guessed
        hours = seconds_of(config.run.max_time) / 3600
        total = int(max(0.0, 3600 * hours - bench.decoding) / whole.seconds)
    return DryRun(rates, total, hours, disk, rates.limit(config))


def measure(
    config: PretrainConfig, console: Console = SILENT, steps: int = 20
) -> tuple[PretrainConfig, Rates]:
    """The rates of all sides, and the configuration they are for.

    Each side gets about `steps` timed steps, in turns, and the median counts.

    Raises:
        UserError: anything that `pretrain` would refuse before its first step.
    """
    bench = prepare_bench(config, console, with_bare=True)
    each = max(1, round(steps / _ROUNDS))
    peak = peak_flops(bench.device, bench.config.run.precision)
    bench.bare(1, WARM)
    bench.model(1, WARM)
    paces: dict[str, list[StepTime]] = {"loader": [], "model": [], "whole": [], "bare": []}
    for _ in range(_ROUNDS):
        for _ in range(each):
            paces["bare"].append(bench.bare(1))
            paces["model"].append(bench.model(1))
        paces["loader"].append(bench.loader(each))
        paces["whole"].append(bench.whole(each))
    batch = bench.config.run.batch_size
    rates: dict[str, Any] = {
        side: batch / statistics.median(p.seconds for p in turns) for side, turns in paces.items()
    }
    wait = statistics.median(pace.wait / pace.seconds for pace in paces["whole"])
    return bench.config, Rates(**rates, wait=wait, peak=peak, **bench.costs())


def prepare_bench(config: PretrainConfig, console: Console, with_bare: bool = False) -> ThroughputBench:
    """What `pretrain` resolves, refuses and prints before it makes a folder."""
    if config.run.devices > 1:
        cure = "leave --devices out; N of them take an Nth of the time, and what they exchange on top"
        raise UserError("--dry-run and bench time one process", cure)
    device = pick_device(config.run.device)
    refuse_times(config.run)
    images, numbers = open_with_range(config)
    ready = resolve(config, len(images), images.native_side(), device, numbers)
    check(ready, console)
    refuse_longer_than_run(ready.config, len(images), USUAL_WARMUP, console)
    ready = measured(ready, device, console)
    bench = ThroughputBench(ready, images, device, console, with_bare)
    announce(replace(ready, config=bench.config), bench.method, images, console)
    bench.decode(console)
    return bench
