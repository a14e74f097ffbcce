"""What people read before and while a run trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sslkit.core.config.build import PretrainConfig, flat
from sslkit.core.console import Console, command, counted
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods import default_configuration, short_name
from sslkit.methods.base import Method
from sslkit.training.loop.engine import Step
from sslkit.training.loop.optim import learning_rate
from sslkit.training.pretrain.auto import Resolved
from sslkit.version import __version__


def announce(ready: Resolved, method: Method, images: ImageSet, console: Console) -> None:
    """Everything resolved, before the first step."""
    config, info = ready.config, ready.info
    batch, optim, schedule = config.run.batch_size, config.optim, config.schedule
    per_epoch = info.count // batch
    encoder = sum(p.numel() for p in method.encoder.parameters())
    rest = sum(p.numel() for p in method.parameters()) - encoder
    devices = config.run.devices
    micro = min(config.run.micro_batch or batch, batch // devices)
    peak = learning_rate(optim.lr, batch, optim.reference_batch)
    console.say(f"sslkit {__version__} pretrain: {short_name(config.method_name)} on {config.model.backbone}")
    console.facts(
        {
            "data": f"{info.count:,} images from {images.name}, short side {info.native} px",
            "views": f"{info.size} × {info.size} px",
            "model": f"{encoder / 1e6:.2f} M weights in the encoder, {rest / 1e6:.2f} M beside it",
            "batch": f"{batch} = {micro} × {-(-batch // devices // micro)} steps of accumulation × "
            + counted(devices, "device"),
            "device": f"{config.run.device}, {config.run.precision}, "
            f"{counted(config.data.workers, 'worker')} reading",
            "schedule": f"{counted(schedule.epochs, 'epoch')} × {counted(per_epoch, 'step')}, "
            f"{schedule.warmup_epochs:g} warm up",
            "lr": f"{optim.lr:g} per {optim.reference_batch} images → {peak:.3g} at batch {batch}",
            "run": config.run.out,
        }
    )
    for line in images.left_out.lines():
        console.say(f"  {line}")
    tell_reasons(config, ready.reasons, console)
    _tell_given(config, ready.reasons, console)


def _tell_given(config: PretrainConfig, reasons: Mapping[str, str], console: Console) -> None:
    """Settings that differ from the method's defaults, and where those are to be read."""
    usual = flat(default_configuration(config.method_name))
    known = {"data.sources", "run.out", *reasons}  # told above
    given = [f"{k} = {v}" for k, v in flat(config).items() if k not in known and v != usual[k]]
    if given:
        console.say(f"  as given: {', '.join(given)}")
    defaults = command("sslkit", "methods", config.method_name, "--toml")
    console.say(f"  all else by default, as {defaults} prints it")


def tell_reasons(config: Any, reasons: Mapping[str, str], console: Console) -> None:
    """Every setting that was left to the tool, with the value it got and why; none without a reason."""
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
    parts += [f"lr {line['lr']:.2e}", f"{line['images_per_s']:.0f} images/s", f"waiting {line['wait']:.0%}"]
    if "rank" in line:
        parts += [f"rank {line['rank']:.1f}", f"std {line['std']:.3f}"]
    return "  ".join(parts)
