"""How fast a pre-training would be: `pretrain --dry-run`, and `bench`, beside the backbone alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import SILENT, Console
from sslkit.core.device import autocast, pick_device, to_device
from sslkit.methods.base import Clock
from sslkit.models.encoder import Encoder
from sslkit.training.loop.acceleration import accelerate_
from sslkit.training.loop.flops import counted_flops, peak_flops
from sslkit.training.loop.intervals import refuse_times
from sslkit.training.loop.job import Job
from sslkit.training.loop.optim import build_optimizer, parameter_groups
from sslkit.training.loop.rates import DryRun, Rates
from sslkit.training.loop.sample import sample
from sslkit.training.loop.throughput import WARM, StepTime, ThroughputBench, refuse_devices, time_run
from sslkit.training.pretrain.announce import announce
from sslkit.training.pretrain.pictures import PICTURED
from sslkit.training.pretrain.prepare import begin
from sslkit.training.run.folder import build_encoder, refuse_place

_ROUNDS = 3
"""Turns that each side gets in `measure`; medians are over these."""
PICTURE_COLUMNS = 4


def dry_run(config: PretrainConfig, console: Console = SILENT) -> DryRun:
    """What `pretrain` would take, from a few timed steps; writes nothing.

    Raises:
        UserError: anything that `pretrain` would refuse before its first step.
    """
    refuse_place(config.run.out)
    job = prepare_job(config, console)
    encoder = sum(tensor.nbytes for tensor in job.network.encoder.model.state_dict().values())
    picture = 3 * PICTURED * PICTURE_COLUMNS * job.config.data.size**2  # at most: PNG packs them
    return time_run(job, console, encoder + picture * job.config.run.pictures)


def measure(
    config: PretrainConfig, console: Console = SILENT, steps: int = 20
) -> tuple[PretrainConfig, Rates]:
    """The rates of all sides, and the configuration they are for.

    Each side gets about `steps` timed steps, in turns, and the median counts.

    Raises:
        UserError: anything that `pretrain` would refuse before its first step.
    """
    job = prepare_job(config, console)
    config = job.config
    encoder = build_encoder(config).to(job.device)
    flops = _flops(job, encoder)
    accelerate_(encoder, config, job.device)
    bench, bare = ThroughputBench(job, console), _bare_steps(encoder.train(), config, job.device)
    each = max(1, round(steps / _ROUNDS))
    bench.timed(bare, WARM, 1)
    bench.model(1, WARM)
    times: dict[str, list[StepTime]] = {"loader": [], "model": [], "whole": [], "bare": []}
    for _ in range(_ROUNDS):
        for _ in range(each):
            times["bare"].append(bench.timed(bare, 0, 1))
            times["model"].append(bench.model(1))
        times["loader"].append(bench.loader(each))
        times["whole"].append(bench.whole(each))
    batch = config.run.batch_size
    rates: dict[str, Any] = flops | {
        side: batch / statistics.median(one.seconds for one in turns) for side, turns in times.items()
    }
    wait = statistics.median(one.wait / one.seconds for one in times["whole"])
    peak = peak_flops(job.device, config.run.precision)
    return config, Rates(**rates, wait=wait, peak=peak, **bench.costs())


def prepare_job(config: PretrainConfig, console: Console) -> Job:
    """What `pretrain` prepares, refuses and says before it makes a folder."""
    refuse_devices(config.run)
    device = pick_device(config.run.device)
    refuse_times(config.run)
    ready, images, job = begin(config, device, console)
    announce(ready, job.network, images, console)
    job.network.train()
    return job


def _bare_steps(encoder: Encoder, config: PretrainConfig, device: torch.device) -> Iterator[None]:
    """The backbone alone: forward, the mean of its features as loss, backward, optimizer."""
    images = torch.rand(config.run.batch_size, 3, config.data.size, config.data.size, device=device)
    groups = parameter_groups(encoder, config.optim.weight_decay, {})
    optimizer = build_optimizer(groups, config.optim, lr=1e-6)
    while True:
        with autocast(device, config.run.precision):
            loss = encoder.vector(images).float().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def _flops(job: Job, encoder: Encoder) -> dict[str, float]:
    """What an image costs in the method and in the backbone alone, measured with two."""
    method, few = job.network, to_device(sample(job.images, job.transform, 2), job.device)
    images = torch.rand(2, 3, job.config.data.size, job.config.data.size, device=job.device)
    clock = Clock(0, 1, 1, job.config.run.seed)
    flops = counted_flops(lambda: method(few, clock)["loss"]) / 2
    bare_flops = counted_flops(lambda: encoder.vector(images).mean()) / 2
    method.zero_grad(set_to_none=True)
    encoder.zero_grad(set_to_none=True)
    return {"flops": flops, "bare_flops": bare_flops}
