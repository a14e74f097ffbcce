"""pretrain: from images to an encoder. Everything is checked and printed before the first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import sslkit
from sslkit import config as configuration
from sslkit.config import PretrainConfig
from sslkit.console import SILENT, Console
from sslkit.data.decode import native_side
from sslkit.data.sources import ImageSet, open_images
from sslkit.errors import UserError
from sslkit.methods import load, short_name
from sslkit.methods.base import Method
from sslkit.training import checkpoint
from sslkit.training.device import pick_device
from sslkit.training.progress import announce
from sslkit.training.resolve import Resolved, interval, resolve
from sslkit.training.run import RunFolder, build_method, describe, read_configuration
from sslkit.training.session import Session
from sslkit.weights import load_encoder, load_into, tensors_for


def pretrain(config: PretrainConfig, console: Console = SILENT) -> Path:
    """Train an encoder without labels; returns the run's folder.

    Raises:
        UserError: anything that can't work, before any work starts.
        Interrupted: stopped by a signal, after saving.
    """
    device = pick_device(config.run.device)
    interval(config.run.save_every)
    images = open_images(config.data.sources, config.data.limit or None)
    config = _anchored(config)
    ready = resolve(config, len(images), native_side(images), device)
    _check(ready, console)
    method = _prepared(ready, images, device, console)
    run = RunFolder.create(Path(ready.config.run.out))
    run.update(status="running", **describe(images, ready.info, device))
    header = f"sslkit {sslkit.__version__}: `sslkit pretrain -c {run.path / 'config.toml'}` repeats this run"
    (run.path / "config.toml").write_text(configuration.dump(ready.config, header), encoding="utf-8")
    with console.copied_to(run.path / "log.txt"):
        announce(ready, method, images, console)
        return Session(ready, method, images, run, device, console).go(start=0)


def resume(path: Path, console: Console = SILENT) -> Path:
    """Continue a run at the very step of its newest whole checkpoint.

    Raises:
        UserError: not a run, already complete, or its images have changed.
    """
    run = RunFolder.open(path)
    facts, config = run.facts, read_configuration(path / "config.toml")
    if facts.get("status") == "completed":
        raise UserError(
            f"{path} is already complete", f"sslkit probe {path} DATA, or pretrain --init {path} to go on"
        )
    device = pick_device(config.run.device)
    images = open_images(config.data.sources, config.data.limit or None)
    if images.fingerprint != facts["data"]["fingerprint"]:
        was = facts["data"]["count"]
        raise UserError(
            f"the images have changed since {path} began: {was} then, {len(images)} now", "restore them"
        )
    ready = resolve(config, len(images), facts["data"]["native"], device)  # settings newer than the run
    method = build_method(config, ready.info).to(device)
    session = Session(ready, method, images, run, device, console)
    with console.copied_to(path / "log.txt"):
        found, notices = checkpoint.newest(path / "checkpoints")
        for notice in notices:
            console.warn(notice)
        start = checkpoint.restore(found, method, session.optimizer)["step"] if found else 0
        if found is None:
            _start_weights(ready, method, images, console)
        run.forget_after(start)
        run.update(status="running")
        console.say(f"resuming {path} at step {start} of {session.clock.steps}")
        return session.go(start)


def _check(ready: Resolved, console: Console) -> None:
    """Refuse what the method can't do with these images and batches; warn of what changes it."""
    name, run = short_name(ready.config.method_name), ready.config.run
    method, memory = load(ready.config.method_name), run.micro_batch or run.batch_size
    if missing := method.needs - {"image"}:
        problem = f"{name} needs {', '.join(sorted(missing))} beside images"
        raise UserError(problem, "sslkit pretrain gives images alone; sslkit methods lists what others need")
    last = run.batch_size % memory or memory
    if min(memory, last) < method.minimum_batch:
        problem = f"{name} compares the images of a batch, and gets {min(memory, last)} at once"
        raise UserError(problem, f"--batch-size and --micro-batch of at least {method.minimum_batch}")
    if method.couples_images and memory < run.batch_size:
        console.warn(
            f"{name} compares the images in memory: {run.batch_size} in parts of {memory} is the method "
            f"at batch {memory}, with rarer steps"
        )


def _anchored(config: PretrainConfig) -> PretrainConfig:
    """Sources as absolute paths, so that the run can be resumed and looked at from anywhere."""
    sources = tuple(str(Path(s).absolute()) if Path(s).exists() else s for s in config.data.sources)
    return replace(config, data=replace(config.data, sources=sources))


def _prepared(ready: Resolved, images: ImageSet, device: torch.device, console: Console) -> Method:
    """The method on its device with the weights it starts from."""
    method = build_method(ready.config, ready.info).to(device)
    _start_weights(ready, method, images, console)
    return method


def _start_weights(ready: Resolved, method: Method, images: ImageSet, console: Console) -> None:
    if ready.config.model.init:
        init = ready.config.model.init
        other = load_encoder(init)
        found = load_into(method.encoder.model, tensors_for(other, method.encoder.model))
        if found.missing:
            problem = f"--init {init} ({other.name}) lacks {found.missing[0]} of {method.encoder.name}"
            raise UserError(problem, f"--backbone {other.name}")
        method.encoder.mean.copy_(other.mean)
        method.encoder.std.copy_(other.std)
        console.say(f"started from {init}: {found.taken} tensors taken, {len(found.unused)} unused")
    method.prepare(images)
