"""pretrain: from images to an encoder. Everything is checked and printed before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import sslkit
from sslkit import config as configuration
from sslkit import distributed, place, processes
from sslkit.blocks import share_statistics_
from sslkit.config import PretrainConfig, Run
from sslkit.console import SILENT, Console, command
from sslkit.data.decode import native_side
from sslkit.data.sources import ImageSet, open_images
from sslkit.errors import UserError
from sslkit.files import replacing
from sslkit.methods import card, load, short_name
from sslkit.methods.base import Clock, Method
from sslkit.paths import refuse_full
from sslkit.training import checkpoint
from sslkit.training.acceleration import accelerate_, fitted, sample
from sslkit.training.changes import image_changes, list_images, setting_changes, settings_of
from sslkit.training.device import kind, pick_device, to_device
from sslkit.training.launch import launch
from sslkit.training.locks import locked
from sslkit.training.loggers import require
from sslkit.training.norms import cure_of_one, fewest_at_once, refuse_one_value
from sslkit.training.progress import announce
from sslkit.training.resolve import USUAL_WARMUP, Resolved, refuse_times, resolve
from sslkit.training.run import (
    ROOM,
    RunFolder,
    begun,
    build_method,
    describe,
    read_configuration,
    refuse_place,
)
from sslkit.training.session import Session
from sslkit.training.spans import refuse_longer_than_run
from sslkit.weights import load_encoder, load_into, tensors_for


def pretrain(config: PretrainConfig, console: Console = SILENT, overwrite: bool = False) -> Path:
    """Train an encoder without labels; returns the run's folder.

    Args:
        overwrite: a run that is already at `run.out` is moved aside, not refused.

    Raises:
        UserError: anything that can't work, before any work starts.
        Interrupted: stopped by a signal, after saving.
    """
    if config.run.devices > 1 and not place.placed():
        given = (settings_of(config), console.choice, overwrite)
        return Path(launch(_pretrain_here, given, config.run.devices))
    device = pick_device(config.run.device)
    refuse_times(config.run)
    with processes.joined(device, config.run.patience), processes.watched(lambda: 0):
        processes.on_first(lambda: refuse_place(config.run.out, overwrite))
        images = open_images(config.data.sources, config.data.limit or None)
        config = _anchored(config)
        ready = _agreed(resolve(config, len(images), native_side(images), device))
        check(ready, console)
        refuse_longer_than_run(ready.config, len(images), USUAL_WARMUP, console)
        method = _prepared(ready, images, device, console)
        ready = fitted(ready, method, images, device)
        needed = checkpoint.bytes_needed(method, ready.config.optim.name)
        processes.on_first(lambda: refuse_full(Path(ready.config.run.out), needed, "checkpoints", ROOM))
        path = processes.on_first(lambda: _begun(ready, images, device, overwrite))
        ready, run = _placed(ready, path), RunFolder(path, writes=distributed.rank() == 0)
        with _held(run, console):
            announce(ready, method, images, console)
            return Session(ready, method, images, run, device, console).go(start=0)


def _pretrain_here(values: dict[str, Any], choice: tuple[bool, bool], overwrite: bool) -> str:
    """`pretrain` in a process of its own, with what can be sent there."""
    name = values.pop("method.name")
    config = configuration.build_pretrain(name, card(name).Config, values)
    return str(pretrain(config, Console(*choice), overwrite))


def _begun(ready: Resolved, images: ImageSet, device: torch.device, overwrite: bool) -> Path:
    """The run's new folder, with what stands there before the first step."""
    out = Path(ready.config.run.out)
    if "run.out" in ready.reasons:  # its number was free a while ago; this takes the one that is free now
        run = RunFolder.claim(out.parent, out.name.rpartition("-")[0])
    else:
        run = RunFolder.create(out, overwrite)
    with begun(run):
        run.update(status="running", **describe(images, ready.info, device))
        write_settings(run.path, _placed(ready, run.path).config)
        list_images(images, run.path)
    return run.path


def _placed(ready: Resolved, path: Path) -> Resolved:
    """The same in this folder."""
    config = ready.config
    return replace(ready, config=replace(config, run=replace(config.run, out=str(path))))


def write_settings(path: Path, config: PretrainConfig) -> None:
    """config.toml of a run's folder."""
    repeat = command("sslkit", "pretrain", "-c", path / "config.toml")
    header = f"sslkit {sslkit.__version__}: `{repeat}` repeats this run"
    with replacing(path / "config.toml") as unfinished:
        unfinished.write_text(configuration.dump(config, header), encoding="utf-8")


@contextmanager
def _held(run: RunFolder, console: Console) -> Iterator[None]:
    """The run's lock and log, for the process that writes."""
    if not run.writes:
        yield
        return
    with locked(run.path, console), console.copied_to(run.path / "log.txt"), _told_if_full(run.path):
        yield


def _agreed(ready: Resolved) -> Resolved:
    """The same configuration in every process, and how many there are; each one's GPU is its own affair."""
    config, world = ready.config, distributed.world()
    device = kind(config.run.device) if world > 1 else config.run.device
    run = replace(config.run, out=processes.told(config.run.out), devices=world, device=device)
    return replace(ready, config=replace(config, run=run))


def resume(
    path: Path, console: Console = SILENT, allow_data_change: bool = False, devices: int | None = None
) -> Path:
    """Continue a run at the very step of its newest whole checkpoint.

    Args:
        allow_data_change: go on although the images are not those the run began with.
        devices: processes that train together from here on; None: as many as before.

    Raises:
        UserError: not a run, already complete, in use, or its images or its network have changed.
    """
    run = RunFolder.open(path)
    if run.facts.get("status") == "completed":
        raise UserError(
            f"{path} is already complete",
            f"{command('sslkit', 'probe', path)} DATA, or {command('pretrain', '--init', path)} to go on",
        )
    config = read_configuration(path / "config.toml")
    count = devices or config.run.devices
    if count > 1 and not place.placed():
        return Path(launch(_resume_here, (str(path), console.choice, allow_data_change), count))
    device = pick_device(config.run.device)
    with processes.joined(device, config.run.patience), processes.watched(lambda: 0):
        run.writes = distributed.rank() == 0
        with _held(run, console):
            return _resumed(run, config, device, console, allow_data_change)


def _resume_here(path: str, choice: tuple[bool, bool], allow_data_change: bool) -> str:
    """`resume` in a process of its own, with what can be sent there."""
    return str(resume(Path(path), Console(*choice), allow_data_change))


def _resumed(
    run: RunFolder, config: PretrainConfig, device: torch.device, console: Console, allow_data_change: bool
) -> Path:
    data = run.facts["data"]
    images = open_images(config.data.sources, config.data.limit or None)
    if images.fingerprint != data["fingerprint"]:
        processes.on_first(lambda: _accept_images(run, images, console, allow_data_change))
    ready = _agreed(resolve(config, len(images), data["native"], device))  # settings newer than the run
    check(ready, console)
    found, notices = processes.on_first(lambda: checkpoint.newest(run.path / "checkpoints"))
    for notice in notices:
        console.warn(notice)
    state = checkpoint.read_state(found) if found else {}
    for change in setting_changes(state.get("config", {}), settings_of(config)):
        console.warn(f"config.toml has changed since step {state['step']}: {change}")
    method = _built(ready, device)
    accelerate_(method, ready.config, device)
    session = Session(ready, method, images, run, device, console)
    session.go_on_from(state)
    start = checkpoint.restore(found, method, session.optimizer)["step"] if found else 0
    if start > session.clock.steps:
        raise UserError(
            f"{run.path} is at step {start} of now only {session.clock.steps}", "more schedule.epochs"
        )
    if found is None:
        _start_weights(ready, method, images, console)
    run.forget_after(start)
    run.update(status="running")
    console.say(f"resuming {run.path} at step {start} of {session.clock.steps}")
    return session.go(start)


def _accept_images(run: RunFolder, images: ImageSet, console: Console, allowed: bool) -> None:
    """Go on with other images than the run's, if that is wanted."""
    was, changes = run.facts["data"]["count"], image_changes(images, run.path)
    said = f"the images have changed since {run.path} began: {was} then, {len(images)} now: {changes}".rstrip(
        ": "
    )
    if not allowed:
        raise UserError(said, "restore them, or --allow-data-change to go on with these")
    console.warn(said)
    run.update(data={**run.facts["data"], "count": len(images), "fingerprint": images.fingerprint})
    list_images(images, run.path)


@contextmanager
def _told_if_full(path: Path) -> Iterator[None]:
    """What the disk refuses outside the loop ends the run in one line."""
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise UserError(
            f"{problem.filename or path}: {reason}", "make room, or mend the folder", code=1
        ) from None


def check(ready: Resolved, console: Console) -> None:
    """Refuse what the method can't do with these images and batches; warn of what changes it."""
    name, run = short_name(ready.config.method_name), ready.config.run
    require(run.loggers)
    method = load(ready.config.method_name)
    if missing := method.needs - {"image"}:
        problem = f"{name} needs {', '.join(sorted(missing))} beside images"
        raise UserError(problem, "sslkit pretrain gives images alone; sslkit methods lists what others need")
    if run.batch_size % run.devices:
        problem = f"a batch of {run.batch_size} images can't be shared by {run.devices} processes alike"
        raise UserError(problem, f"--batch-size {run.batch_size // run.devices * run.devices or run.devices}")
    part = run.batch_size // run.devices
    memory, fewest = min(run.micro_batch or part, part), _fewest(run)
    if fewest < method.minimum_batch:
        problem = f"{name} compares the images of a batch, and gets {fewest} at once"
        raise UserError(problem, f"--batch-size and --micro-batch of at least {method.minimum_batch}")
    if method.couples_images and memory < part:
        console.warn(
            f"{name} compares the images in memory: {part} in parts of {memory} is the method "
            f"at batch {memory * run.devices}, with rarer steps"
        )


def _anchored(config: PretrainConfig) -> PretrainConfig:
    """Sources as absolute paths, so that the run can be resumed and looked at from anywhere."""
    sources = tuple(str(Path(s).absolute()) if Path(s).exists() else s for s in config.data.sources)
    return replace(config, data=replace(config.data, sources=sources))


def _prepared(ready: Resolved, images: ImageSet, device: torch.device, console: Console) -> Method:
    """The method on its device with the weights it starts from."""
    method = started(ready, images, device, console)
    accelerate_(method, ready.config, device)
    return method


def started(ready: Resolved, images: ImageSet, device: torch.device, console: Console) -> Method:
    """The method on its device before its first step: fresh weights, or those of `model.init`.

    Raises:
        UserError: those can't be had, or don't fit.
    """
    method = _built(ready, device)
    _start_weights(ready, method, images, console)
    if _fewest(ready.config.run) == 1:
        run, one = ready.config.run, to_device(sample(method, images, 1), device)
        cure = cure_of_one(run.batch_size, run.devices)
        refuse_one_value(method, one, Clock(0, 1, 1, run.seed), device, run.precision, cure)
    return method


def _fewest(run: Run) -> int:
    return fewest_at_once(run.batch_size, run.micro_batch, run.devices)


def _built(ready: Resolved, device: torch.device) -> Method:
    """The method with fresh weights on its device."""
    method = build_method(ready.config, ready.info).to(device)
    if ready.config.model.sync_norm and distributed.world() > 1:
        share_statistics_(method, device)
    return method


def _start_weights(ready: Resolved, method: Method, images: ImageSet, console: Console) -> None:
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
    method.prepare(images)
