"""What a pre-training begins with: settings without auto, its images, and its method with its weights."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import torch

from sslkit.augmentations import batch
from sslkit.core.config import build as configuration
from sslkit.core.config.build import PretrainConfig
from sslkit.core.config.sections import Run
from sslkit.core.console import Console, command
from sslkit.core.device import to_device
from sslkit.core.distributed import collectives
from sslkit.core.errors import UserError
from sslkit.core.files import replacing
from sslkit.data.sources.image_set import ImageSet
from sslkit.evaluation.probe.feature_cache import encoder_digest
from sslkit.methods import load, short_name
from sslkit.methods.base import Clock, Method
from sslkit.models.frozen import Frozen
from sslkit.models.norm import share_statistics_
from sslkit.models.weights import load_encoder, load_into, tensors_for
from sslkit.training.loop.acceleration import accelerate_, fitted
from sslkit.training.loop.around import around_method, refuse_sizes
from sslkit.training.loop.batch_norm_check import cure_of_one, fewest_at_once, refuse_one_value
from sslkit.training.loop.intervals import refuse_longer_than_run
from sslkit.training.loop.job import Job, agreed, refuse_uneven
from sslkit.training.loop.look import Look
from sslkit.training.loop.optim import pretraining
from sslkit.training.loop.sample import sample
from sslkit.training.pretrain.auto import USUAL_WARMUP, Resolved, resolve
from sslkit.training.pretrain.fastest import measured
from sslkit.training.pretrain.image_range import open_with_range
from sslkit.training.run.folder import RunFolder, build_method
from sslkit.training.run.loggers import require
from sslkit.version import __version__


def prepare(
    config: PretrainConfig, device: torch.device, console: Console, count: int | None = None
) -> tuple[Resolved, ImageSet]:
    """Everything that is known, chosen and refused before the method is built; writes nothing.

    Args:
        count: items of an epoch, where they are not the images one by one.

    Raises:
        UserError: anything that can't work.
    """
    images, numbers = open_with_range(config)
    config = _anchored(config)
    if config.run.curriculum and config.run.max_time:
        problem = "--curriculum needs to know how many steps there are, and --max-time decides that anew"
        raise UserError(problem, "--epochs in the place of --max-time")
    count = len(images) if count is None else count
    ready = shared(resolve(config, count, images.native_side(), device, numbers))
    check(ready, console)
    refuse_longer_than_run(ready.config, count, USUAL_WARMUP, console)
    return measured(ready, device, console), images


def _anchored(config: PretrainConfig) -> PretrainConfig:
    """Sources as absolute paths, so that the run can be resumed and looked at from anywhere."""

    def absolute(text: str) -> str:
        return str(Path(text).absolute()) if text and Path(text).exists() else text

    named = {
        item.name: absolute(getattr(config.method, item.name))
        for item in fields(config.method)
        if item.metadata.get("source")
    }
    data = replace(config.data, sources=tuple(map(absolute, config.data.sources)))
    return replace(config, data=data, method=replace(config.method, **named))


def frozen_weights(method: Method) -> dict[str, dict[str, str]]:
    """The encoders that a method only looks at, as run.json keeps them: name → source and SHA-256."""
    return {
        name: {"source": module.source, "sha256": encoder_digest(module.encoder)}
        for name, module in method.named_modules()
        if isinstance(module, Frozen)
    }


def refuse_other_weights(run: RunFolder, method: Method) -> None:
    """Raises UserError where an encoder that the method looks at is not the one that the run began with."""
    then = run.facts.get("frozen", {})
    for name, now in frozen_weights(method).items():
        if name in then and then[name]["sha256"] != now["sha256"]:
            raise UserError(
                f"{name}: the weights of {now['source']} have changed since {run.path} began",
                f"put back what {then[name]['source']} held, or begin a new run",
            )


def shared(ready: Resolved) -> Resolved:
    """The same configuration in every process."""
    return replace(ready, config=replace(ready.config, run=agreed(ready.config.run)))


def begin(config: PretrainConfig, device: torch.device, console: Console) -> tuple[Resolved, ImageSet, Job]:
    """`prepare`, and the method with the weights that it begins with, as it will train.

    Raises:
        UserError: anything that can't work.
    """
    ready, images = prepare(config, device, console)
    method = started(ready, images, device, console)
    count = len(method.dataset(images))
    if count != len(images):  # batch, epochs and whatever else depends on it are chosen for the items
        ready, images = prepare(config, device, console, count)
        method = started(ready, images, device, console)
    accelerate_(method, ready.config, device)
    job = fitted(job_of(ready, method, images, device))
    if job.around is not None:
        refuse_sizes(job.around, method, job.images, job.config, device)
    return replace(ready, config=job.config, reasons=dict(job.reasons)), images, job


def job_of(ready: Resolved, method: Method, images: ImageSet, device: torch.device) -> Job:
    """The training of this method on these images."""
    config = ready.config
    job = Job(
        config,
        ready.reasons,
        method,
        method.dataset(images),
        method.transform(),
        lambda clock: pretraining(method, config, clock),
        device,
    )
    return replace(job, around=around_method(config, method, job.clock.steps))


def write_settings(path: Path, config: PretrainConfig) -> None:
    """config.toml of a run's folder."""
    repeat = command("sslkit", "pretrain", "-c", path / "config.toml")
    header = f"sslkit {__version__}: `{repeat}` repeats this run"
    with replacing(path / "config.toml") as unfinished:
        unfinished.write_text(configuration.dump(config, header), encoding="utf-8")


def check(ready: Resolved, console: Console) -> None:
    """Refuse what the method can't do with these images and batches; warn of what changes it."""
    name, run = short_name(ready.config.method_name), ready.config.run
    require(run.loggers)
    method = load(ready.config.method_name)
    if missing := method.needs - {"image"}:
        problem = f"{name} needs {', '.join(sorted(missing))} beside images"
        raise UserError(problem, "sslkit pretrain gives images alone; sslkit methods lists what others need")
    refuse_uneven(run)
    for augment in run.augment:
        for key, value in batch.card(augment).facts.get("wants", {}).items():
            if not hasattr(ready.config.method, key):
                console.warn(f"{augment} asks for method.{key} = {value}, a setting that {name} lacks")
    part = run.batch_size // run.devices
    memory, fewest = min(run.micro_batch or part, part), _fewest(run)
    if fewest < method.minimum_batch:
        problem = f"{name} compares the images of a batch, and gets {fewest} at once"
        least = method.minimum_batch
        raise UserError(
            problem, f"--batch-size {least * run.devices} or more" if part < least else "--micro-batch 0"
        )
    if method.couples_images and memory < part:
        console.warn(
            f"{name} compares the images in memory: {part} in parts of {memory} is the method "
            f"at batch {memory * run.devices}, with rarer steps"
        )


def started(ready: Resolved, images: ImageSet, device: torch.device, console: Console) -> Method:
    """The method on its device before its first step: fresh weights, or those of `model.init`.

    Raises:
        UserError: those can't be had, or don't fit.
    """
    method = built(ready, device)
    start_weights(ready, method, images, device, console)
    if _fewest(ready.config.run) == 1:
        run, one = ready.config.run, to_device(sample(method.dataset(images), method.transform(), 1), device)
        cure = cure_of_one(run.batch_size, run.devices)
        refuse_one_value(method, one, Clock(0, 1, 1, run.seed), device, run.precision, cure)
    return method


def _fewest(run: Run) -> int:
    return fewest_at_once(run.batch_size, run.micro_batch, run.devices)


def built(ready: Resolved, device: torch.device) -> Method:
    """The method with fresh weights on its device."""
    method = build_method(ready.config, ready.info).to(device)
    if ready.config.model.sync_norm and collectives.world_size() > 1:
        share_statistics_(method, device)
    return method


def look_at(
    items: ImageSet, method: Method, config: PretrainConfig, device: torch.device, console: Console
) -> Look:
    """A look at these items, as the run would read them."""
    run, data = config.run, config.data
    return Look(items, method, data.size, device, run.precision, data.workers, run.seed, console)


def start_weights(
    ready: Resolved, method: Method, images: ImageSet, device: torch.device, console: Console
) -> None:
    """Those of `model.init`, if it names some, into the method; then the method's own `prepare`."""
    if ready.config.model.init:
        init = ready.config.model.init
        other = load_encoder(init, backbone=ready.config.model.backbone, console=console)
        found = load_into(method.encoder.model, tensors_for(other, method.encoder.model))
        if found.missing:
            problem = f"--init {init} ({other.name}) lacks {found.missing[0]} of {method.encoder.name}"
            raise UserError(problem, f"--backbone {other.name}")
        method.encoder.mean.copy_(other.mean)
        method.encoder.std.copy_(other.std)
        console.say(f"started from {init}: {found.taken} tensors taken, {len(found.unused)} unused")
    method.prepare(look_at(images, method, ready.config, device, console))
