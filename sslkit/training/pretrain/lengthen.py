"""`--resume RUN --epochs N`: another length for a run, one that is complete too.

The learning rate, and whatever else a method moves over its run (momentum, weight decay, radius), is a
function of step, steps and warm-up. With N epochs it is drawn anew over all of them, and the run goes on at
its step on that curve: the rate jumps there, up for a longer run. Weights and the optimizer's moments go on
as they are, so the end is near, but not equal to, a run that was given N epochs from its first step.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.methods.base import Clock
from sslkit.training.pretrain.prepare import write_settings
from sslkit.training.run.folder import RunFolder

JUDGEMENTS = ("probe.json", "finetune.json", "table.md")
"""Results about the encoder as it was when they were measured."""


def refuse_epochs(epochs: int | None) -> None:
    """Raises UserError for a number that is none."""
    if epochs is not None and epochs < 1:
        raise UserError(f"--epochs (schedule.epochs): {epochs} is not >= 1", "the epochs of the whole run")


def with_epochs(config: PretrainConfig, epochs: int) -> PretrainConfig:
    """The same with another length; a clock that decided it so far decides no longer."""
    schedule = replace(config.schedule, epochs=epochs)
    return replace(config, schedule=schedule, run=replace(config.run, max_time=""))


def refuse_fewer(run: RunFolder, done: int, clock: Clock, epochs: int | None) -> None:
    """Nothing if there is something left to do.

    Args:
        done: steps of the newest checkpoint.
        clock: of the run as it is to be.
        epochs: what was asked for; None: nothing, and config.toml tells.

    Raises:
        UserError: the run has made as many steps, or more.
    """
    complete = run.facts.get("status") == "completed"
    if done < clock.steps or (done == clock.steps and not complete):
        return
    cure = f"--epochs {done // clock.steps_per_epoch + 1} or more"
    if epochs is None:
        raise UserError(f"{run.path} is at step {done} of now only {clock.steps}", f"add {cure}")
    made = f"{done / clock.steps_per_epoch:.4g} epochs"
    raise UserError(f"--epochs {epochs}: {run.path} has made {done} steps already, {made}", cure)


def lengthen(
    run: RunFolder, before: PretrainConfig, config: PretrainConfig, done: int, session: Any, console: Console
) -> None:
    """Write the new length down, say what it does to the rate, and set older results aside.

    Args:
        done: steps of the newest checkpoint.
        session: that goes on; its schedule is asked for the rate.
    """
    write_settings(run.path, config)
    was = "the time that --max-time gave" if before.run.max_time else f"{before.schedule.epochs} epochs"
    session.schedule.apply(done)
    rate = max(group["lr"] for group in session.optimizer.param_groups)
    last = _last_rate(run)
    epochs, jump = config.schedule.epochs, f", from {last:.2e}" if last else ""
    console.say(f"{run.path}: {epochs} epochs now, instead of {was}")
    console.say(f"  the schedule is drawn anew over all of them: the rate goes on at {rate:.2e}{jump}")
    console.say(f"  the end will be near, but not equal to, that of {epochs} epochs from the start")
    for name in JUDGEMENTS:
        _set_aside(run.path / name, done, console)


def _last_rate(run: RunFolder) -> float | None:
    """Of the newest line of metrics.jsonl."""
    with suppress(OSError, ValueError, IndexError, KeyError, TypeError):
        text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
        return float(json.loads(text.splitlines()[-1])["lr"])
    return None


def _set_aside(file: Path, done: int, console: Console) -> None:
    if file.is_file():
        aside = file.with_stem(f"{file.stem}-of-step-{done}")
        with suppress(OSError):
            file.rename(aside)
            console.say(f"{file} is about the encoder of step {done}: now {aside.name}")
