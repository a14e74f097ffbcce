"""What people read before and while a run trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sslkit.core.console import Console, counted
from sslkit.training.loop.engine import Step
from sslkit.training.loop.optim import learning_rate


def facts_of(config: Any, per_epoch: int) -> dict[str, str]:
    """What both trainings say of batch, device, schedule, rate and folder.

    Args:
        config: a PretrainConfig or FinetuneConfig without auto.
        per_epoch: steps of an epoch.
    """
    run, optim, schedule = config.run, config.optim, config.schedule
    batch, devices = run.batch_size, run.devices
    micro = min(run.micro_batch or batch, batch // devices)
    peak = learning_rate(optim.lr, batch, optim.reference_batch)
    return {
        "batch": f"{batch} = {micro} × {-(-batch // devices // micro)} steps of accumulation × "
        + counted(devices, "device"),
        "device": f"{run.device}, {run.precision}, {counted(config.data.workers, 'worker')} reading",
        "schedule": f"{counted(schedule.epochs, 'epoch')} × {counted(per_epoch, 'step')}, "
        f"{schedule.warmup_epochs:g} of warm-up",
        "lr": f"{optim.lr:g} per {optim.reference_batch} images → {peak:.3g} at batch {batch}",
        "run": run.out,
    }


def tell_reasons(config: Any, reasons: Mapping[str, str], console: Console) -> None:
    """Every setting that was auto, with its value and the reason; none without a reason."""
    for key, reason in reasons.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name)
        if isinstance(value, tuple):
            value = f"[{', '.join(f'{number:.9g}' for number in value)}]"
        if reason:
            console.say(f"  {key} = {value}  ({reason})")


def less_at_once(step: Step, batch: int) -> str:
    """What a step has done because memory ran out."""
    at_once = f"{step.micro_batch} of {batch} images at once, the batch of a step stays"
    return f"step {step.clock.step + 1}: out of memory; from here on {at_once}"


def note(line: dict[str, Any]) -> str:
    """The figures beside the bar."""
    line = {name: math.nan if value is None else value for name, value in line.items()}
    parts = [f"epoch {line['epoch']:.2f}", f"loss {line['loss']:.4f}"]
    parts += [
        f"{name.removeprefix('loss_')} {value:.4f}"
        for name, value in line.items()
        if name.startswith("loss_") and not math.isnan(value)
    ]
    if "held_out" in line:
        parts.append(f"held out {line['held_out']:.1f} %")
    parts += [f"lr {line['lr']:.2e}", f"{line['images_per_s']:.0f} images/s", f"waiting {line['wait']:.0%}"]
    if "rank" in line:
        parts += [f"rank {line['rank']:.1f}", f"std {line['std']:.3f}"]
    return "  ".join(parts)
