"""pretrain: from images to an encoder. Everything is checked and printed before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import SILENT, Console, command
from sslkit.core.device import pick_device
from sslkit.core.distributed import collectives, environment, processes
from sslkit.core.errors import UserError
from sslkit.core.paths import refuse_full
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods import configuration
from sslkit.training.loop.acceleration import accelerate_
from sslkit.training.loop.intervals import refuse_times
from sslkit.training.loop.job import Job
from sslkit.training.loop.launch import launch
from sslkit.training.pretrain.announce import announce
from sslkit.training.pretrain.auto import Resolved, resolve
from sslkit.training.pretrain.image_range import open_with_range
from sslkit.training.pretrain.lengthen import lengthen, refuse_epochs, refuse_fewer, with_epochs
from sslkit.training.pretrain.prepare import (
    begin,
    built,
    check,
    frozen_weights,
    job_of,
    refuse_other_weights,
    shared,
    start_weights,
    write_settings,
)
from sslkit.training.pretrain.session import PretrainSession
from sslkit.training.run import checkpoint
from sslkit.training.run.folder import ROOM, RunFolder, begun, describe, read_configuration, refuse_place
from sslkit.training.run.lock import held
from sslkit.training.run.resume_check import image_changes, list_images, newest_state, settings_of


def pretrain(config: PretrainConfig, console: Console = SILENT, overwrite: bool = False) -> Path:
    """Train an encoder without labels; returns the run's folder.

    Args:
        overwrite: a run that is already at `run.out` is moved aside, not refused.

    Raises:
        UserError: anything that can't work, before any work starts.
        Interrupted: stopped by a signal, after saving.
    """
    if config.run.devices > 1 and not environment.placed():
        given = (settings_of(config), console.choice, overwrite)
        return Path(launch(_pretrain_here, given, config.run.devices))
    device = pick_device(config.run.device)
    refuse_times(config.run)
    with processes.joined(device, config.run.patience), processes.watched(lambda: 0):
        processes.run_on_first(lambda: refuse_place(config.run.out, overwrite))
        ready, images, job = begin(config, device, console)
        needed = checkpoint.bytes_needed(job.network, job.config.optim.name)
        processes.run_on_first(lambda: refuse_full(Path(job.config.run.out), needed, "checkpoints", ROOM))
        path = processes.run_on_first(lambda: _begun(ready, job, images, overwrite))
        job, run = _placed(job, path), RunFolder(path, writes=collectives.rank() == 0)
        with _held(run, console):
            announce(replace(ready, config=job.config), job.network, images, console)
            return PretrainSession(job, images, run, console).train(start=0)


@contextmanager
def _held(run: RunFolder, console: Console) -> Iterator[None]:
    """The run's lock and log, for the process that writes."""
    if not run.writes:
        yield
        return
    with held(run.path, console, "make room, or mend the folder"):
        yield


def _pretrain_here(values: dict[str, Any], choice: tuple[bool, bool], overwrite: bool) -> str:
    """`pretrain` in a process of its own, with what can be sent there."""
    name = values.pop("method.name")
    return str(pretrain(configuration(name, values), Console(*choice), overwrite))


def _begun(ready: Resolved, job: Job, images: ImageSet, overwrite: bool) -> Path:
    """The run's new folder, with what stands there before the first step."""
    out = Path(job.config.run.out)
    if "run.out" in job.reasons:  # its number was free a while ago; this takes the one that is free now
        run = RunFolder.claim(out.parent, out.name.rpartition("-")[0])
    else:
        run = RunFolder.create(out, overwrite)
    with begun(run):
        run.update(status="running", **describe(images, ready.info, job.device))
        if looked_at := frozen_weights(job.network):
            run.update(frozen=looked_at)
        write_settings(run.path, _placed(job, run.path).config)
        list_images(images, run.path)
    return run.path


def _placed(job: Job, path: Path) -> Job:
    """The same in this folder."""
    return replace(job, config=replace(job.config, run=replace(job.config.run, out=str(path))))


def resume(
    path: Path,
    console: Console = SILENT,
    allow_data_change: bool = False,
    devices: int | None = None,
    epochs: int | None = None,
) -> Path:
    """Continue a run at the very step of its newest whole checkpoint.

    Args:
        allow_data_change: go on although the images are not those the run began with.
        devices: processes that train together from here on; None: as many as before.
        epochs: of the whole run from here on, for one that is complete too; see `training.pretrain.lengthen`.

    Raises:
        UserError: not a run, already complete, in use, or its images or its network have changed.
    """
    run = RunFolder.open(path)
    config = read_configuration(path / "config.toml")
    if run.facts.get("status") == "completed" and epochs is None:
        more = command("sslkit", "pretrain", "--resume", path, "--epochs", str(2 * config.schedule.epochs))
        cure = f"{more} trains on; {command('sslkit', 'probe', path)} DATA tells how good it is"
        raise UserError(f"{path} is already complete", cure)
    refuse_epochs(epochs)
    count = devices or config.run.devices
    if count > 1 and not environment.placed():
        return Path(launch(_resume_here, (str(path), console.choice, allow_data_change, epochs), count))
    device = pick_device(config.run.device)
    with processes.joined(device, config.run.patience), processes.watched(lambda: 0):
        run.writes = collectives.rank() == 0
        with _held(run, console):
            return _resumed(run, config, device, console, allow_data_change, epochs)


def _resume_here(path: str, choice: tuple[bool, bool], allow_data_change: bool, epochs: int | None) -> str:
    """`resume` in a process of its own, with what can be sent there."""
    return str(resume(Path(path), Console(*choice), allow_data_change, epochs=epochs))


def _resumed(
    run: RunFolder,
    before: PretrainConfig,
    device: torch.device,
    console: Console,
    allow_data_change: bool,
    epochs: int | None,
) -> Path:
    config = before if epochs is None else with_epochs(before, epochs)
    data = run.facts["data"]
    images, numbers = open_with_range(config)
    if images.fingerprint != data["fingerprint"]:
        processes.run_on_first(lambda: _accept_images(run, images, console, allow_data_change))
    # Settings newer than the run are resolved now.
    count = len(images) if data.get("items", data["count"]) == data["count"] else data["items"]
    ready = shared(resolve(config, count, data["native"], device, numbers))
    check(ready, console)
    found, state = newest_state(run, before, console)
    method = built(ready, device)
    processes.run_on_first(lambda: refuse_other_weights(run, method))
    if found is None:
        start_weights(ready, method, images, device, console)
    else:  # before the method says what its items are
        checkpoint.restore_weights(found, method)
    accelerate_(method, ready.config, device)
    session = PretrainSession(job_of(ready, method, images, device), images, run, console)
    start = session.restore(found, state)
    refuse_fewer(run, start, session.clock, epochs)
    if epochs is not None:
        processes.run_on_first(lambda: lengthen(run, before, config, start, session, console))
    run.forget_after(start)
    run.update(status="running")
    console.say(f"resuming {run.path} at step {start} of {session.clock.steps}")
    return session.train(start)


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
