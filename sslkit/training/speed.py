"""How fast the parts of a training run are: loader, bare backbone, model, and all together.

`rehearse` looks at a run before it begins (`pretrain --dry-run`), `measure` compares the parts (`bench`).
Nothing is written. All sides take turns, so that a busy machine hurts all alike.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslkit.backbones import Encoder
from sslkit.config import AUTO, PretrainConfig
from sslkit.console import SILENT, Console
from sslkit.data.decode import native_side
from sslkit.data.loader import pretraining_loader
from sslkit.data.sources import ImageSet, open_images
from sslkit.methods.base import Clock
from sslkit.training import checkpoint
from sslkit.training.acceleration import accelerate_, fitted
from sslkit.training.device import autocast, pick_device, to_device
from sslkit.training.engine import Step, train
from sslkit.training.flops import counted_flops, peak_flops
from sslkit.training.optim import build_optimizer, optimizer_and_schedule, parameter_groups
from sslkit.training.pictures import PICTURED
from sslkit.training.pretrain import check
from sslkit.training.progress import announce
from sslkit.training.resolve import Resolved, interval, resolve
from sslkit.training.run import build_method, refuse

WARM = 2
"""Steps that are not timed."""
ROUNDS = 3
"""Turns that each side gets in `measure`; medians are over these."""
PICTURE_COLUMNS = 4


@dataclass(frozen=True)
class Rates:
    """Images per second of each side, and what the model costs."""

    loader: float  # nobody computes
    model: float  # the method's whole step on one batch again and again
    whole: float  # both, as in a run
    bare: float  # the backbone alone: forward, backward, optimizer; 0: not measured
    wait: float  # share of the whole's time that passes waiting for images
    memory: int  # bytes: the GPU's peak, or this process's peak resident set
    flops: float = 0.0  # of one image in a step of the method, forward and backward
    bare_flops: float = 0.0  # the same of the backbone alone
    peak: float = 0.0  # FLOP/s the device could do in this precision; 0: unknown

    @property
    def use(self) -> dict[str, float]:
        """Model FLOPs utilisation by side: the share of the device's peak that the model's products take."""
        work = {"bare": self.bare * self.bare_flops, "model": self.model * self.flops}
        work["whole"] = self.whole * self.flops
        return {side: done / self.peak for side, done in work.items() if self.peak}

    def limit(self, config: PretrainConfig) -> str:
        """Which side holds the other up, and the cure."""
        if self.loader < self.model:
            more = f"more than {config.data.workers} --workers, --cache auto, or sslkit pack"
            return f"the loader is the limit: {more}"
        cures = [] if config.run.compile else ["--compile"]
        cures += ["--precision bfloat16"] if config.run.precision == "float32" else []
        if config.run.device.startswith("cuda"):
            cures.append("a larger --batch-size")
        return "the model is the limit: " + (", ".join(cures) or "a smaller --size or --backbone")

    def to_document(self) -> dict[str, Any]:
        return {**asdict(self), "use": self.use}


@dataclass(frozen=True)
class Rehearsal:
    """What a run would take."""

    rates: Rates
    steps: int
    hours: float
    disk: int  # bytes: checkpoints that stay and the one that is being written, the encoder, pictures
    limit: str

    def to_document(self) -> dict[str, Any]:
        own = {"steps": self.steps, "hours": self.hours, "disk": self.disk, "limit": self.limit}
        return {**self.rates.to_document(), **own}


class Pace(NamedTuple):
    """Of one turn of one side."""

    seconds: float  # per step
    wait: float = 0.0  # of these, waiting for images


class Workbench:
    """Everything of a run but its folder, with one function for each side that is timed."""

    def __init__(
        self, ready: Resolved, images: ImageSet, device: torch.device, with_bare: bool = False
    ) -> None:
        self.device = device
        self.method = build_method(ready.config, ready.info).to(device).train()
        config = self.config = ready.config
        self.images = self.method.dataset(images)
        per_epoch = len(self.images) // config.run.batch_size
        self.clock = Clock(0, config.schedule.epochs * per_epoch, per_epoch, config.run.seed)
        with closing(self._batches(1, workers=0)) as batches:
            self.batch = next(batches)
        self.flops = self.bare_flops = 0.0
        if with_bare:
            model = config.model
            self.encoder = Encoder(
                model.backbone, config.data.size, patch_size=model.patch_size or None, stem=model.stem
            ).to(device)
            self._count()  # before compiling: compiled products are not seen
            accelerate_(self.encoder, config, device)
            self._bare = self._bare_steps()
        accelerate_(self.method, config, device)
        self.config = config = fitted(ready, self.method, images, device).config
        groups = parameter_groups(self.method, config.optim.weight_decay, self.method.overrides)
        self.optimizer, self.schedule = optimizer_and_schedule(
            groups, config.optim, config.schedule, config.run.batch_size, self.clock
        )
        self._model = self._steps(repeat(self.batch))

    def loader(self, steps: int) -> Pace:
        """The reading processes alone, emptied as fast as they can."""
        warm, steps = self._turn(steps)
        with closing(self._batches(warm + steps)) as batches:
            return self._timed(batches, warm, steps)

    def whole(self, steps: int) -> Pace:
        """The engine's whole step, with images from the loader."""
        warm, steps = self._turn(steps)
        with closing(self._batches(warm + steps)) as batches:
            return self._timed(self._steps(batches), warm, steps)

    def model(self, steps: int, warm: int = 0) -> Pace:
        """The engine's whole step, with one batch again and again."""
        return self._timed(self._model, warm, steps)

    def bare(self, steps: int, warm: int = 0) -> Pace:
        """The backbone alone: forward, the mean of its features as loss, backward, optimizer."""
        return self._timed(self._bare, warm, steps)

    def memory(self) -> int:
        """Bytes: the most of the GPU's, or of this process's own, that were taken so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _turn(self, steps: int) -> tuple[int, int]:
        """Steps to warm up and steps to time: whole rounds of the workers, whose batches come in a burst."""
        workers = max(1, self.config.data.workers)
        return max(WARM, workers), -(-steps // workers) * workers

    def _timed(self, steps: Iterator[Any], warm: int, count: int) -> Pace:
        """The mean over `count` steps after `warm` others; the device is done before and after."""
        for _ in islice(steps, warm):
            pass
        self._settle()
        began = time.perf_counter()
        waits = [getattr(step, "wait", 0.0) for step in islice(steps, count)]
        self._settle()
        return Pace((time.perf_counter() - began) / count, sum(waits) / count)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _batches(self, steps: int, workers: int | None = None) -> Any:
        return pretraining_loader(
            self.images,
            self.method.transform(),
            batch_size=self.config.run.batch_size,
            seed=self.config.run.seed,
            start_step=0,
            steps=steps,
            steps_per_epoch=self.clock.steps_per_epoch,
            workers=self.config.data.workers if workers is None else workers,
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


def rehearse(config: PretrainConfig, console: Console = SILENT, steps: int = 5) -> Rehearsal:
    """Time a few steps of a run that is not begun, and say what all of it would take; writes nothing.

    Raises:
        UserError: anything that `pretrain` would refuse before its first step.
    """
    if config.run.out != AUTO:
        refuse(Path(config.run.out))
    bench = at_the_door(config, console)
    config, batch = bench.config, bench.config.run.batch_size
    model, loader, whole = bench.model(steps, WARM), bench.loader(steps), bench.whole(steps)
    read, fed, both = (batch / pace.seconds for pace in (loader, model, whole))
    rates = Rates(read, fed, both, bare=0.0, wait=whole.wait / whole.seconds, memory=bench.memory())
    kept = checkpoint.snapshot(bench.method, bench.optimizer).bytes * (checkpoint.KEEP + 1)
    encoder = sum(tensor.nbytes for tensor in bench.method.encoder.model.state_dict().values())
    picture = 3 * PICTURED * PICTURE_COLUMNS * config.data.size**2  # at most: PNG packs them
    disk = kept + encoder + picture * config.run.pictures
    total = bench.clock.steps
    return Rehearsal(rates, total, total * whole.seconds / 3600, disk, rates.limit(config))


def measure(
    config: PretrainConfig, console: Console = SILENT, steps: int = 20
) -> tuple[PretrainConfig, Rates]:
    """The rates of all sides, and the configuration they are for.

    Each side gets about `steps` timed steps, in turns, and the median counts.

    Raises:
        UserError: anything that `pretrain` would refuse before its first step.
    """
    bench = at_the_door(config, console, with_bare=True)
    each = max(1, round(steps / ROUNDS))
    peak = peak_flops(bench.device, bench.config.run.precision)
    bench.bare(1, WARM)
    bench.model(1, WARM)
    paces: dict[str, list[Pace]] = {"loader": [], "model": [], "whole": [], "bare": []}
    for _ in range(ROUNDS):
        for _ in range(each):
            paces["bare"].append(bench.bare(1))
            paces["model"].append(bench.model(1))
        paces["loader"].append(bench.loader(each))
        paces["whole"].append(bench.whole(each))
    batch = bench.config.run.batch_size
    rates = {side: batch / statistics.median(p.seconds for p in turns) for side, turns in paces.items()}
    wait = statistics.median(pace.wait / pace.seconds for pace in paces["whole"])
    costs = {"flops": bench.flops, "bare_flops": bench.bare_flops, "peak": peak}
    return bench.config, Rates(**rates, wait=wait, memory=bench.memory(), **costs)


def at_the_door(config: PretrainConfig, console: Console, with_bare: bool = False) -> Workbench:
    """What `pretrain` resolves, refuses and prints before it makes a folder."""
    device = pick_device(config.run.device)
    interval(config.run.save_every)
    images = open_images(config.data.sources, config.data.limit or None)
    ready = resolve(config, len(images), native_side(images), device)
    check(ready, console)
    bench = Workbench(ready, images, device, with_bare)
    announce(replace(ready, config=bench.config), bench.method, images, console)
    return bench
