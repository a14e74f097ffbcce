"""Precision and memory format on a CPU where no table knows the faster one: a few steps of the run decide.

Known are GPUs, chips without bfloat16, and on others ViTs and CNNs of whole convolutions. With grouped or
depthwise ones, of other networks, or on a chip that does not say what it can, nobody knows beforehand.
The steps run in a process of its own (timed.py), and what they decide is written into config.toml.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from sslkit.core.console import Console
from sslkit.core.device import cpu_bfloat16
from sslkit.core.distributed import processes
from sslkit.core.errors import first_line
from sslkit.models.factory import is_vit
from sslkit.models.input_size import outline
from sslkit.training.pretrain.auto import Resolved
from sslkit.training.pretrain.timed import Way
from sslkit.training.run.resume_check import settings_of

CLEARLY = 0.9
"""float32, and channels_last, are left only for what takes at most this share of their time."""
_LIMIT = 8.0
"""Seconds for the steps; the process itself needs some to begin."""
_PATIENCE = 120.0
"""Seconds after which nothing is expected any more."""

_KEYS = ("run.precision", "model.memory_format")
_USUAL = ("float32", "channels_last")


@dataclass(frozen=True)
class Trial:
    """What came out: processor time of a step of so many images in each way, or why there is none."""

    images: int = 0
    seconds: Mapping[Way, float] = field(default_factory=dict)
    problem: str = ""


def measured(ready: Resolved, device: torch.device, console: Console) -> Resolved:
    """`run.precision` and `model.memory_format`, where they were auto, as what is faster here.

    Of several processes the first one tries, and all follow.
    """
    ways = open_ways(ready, device)
    if len(ways) < 2:
        return ready
    return decided(ready, ways, processes.run_on_first(lambda: tried(ready, ways, console)))


def open_ways(ready: Resolved, device: torch.device) -> list[Way]:
    """Between what there is to decide; a memory format alone is worth no trial of its own.

    A compiled step would take minutes to be tried: there the table holds.
    """
    config = ready.config
    model, precision, layout = config.model, config.run.precision, config.model.memory_format
    if device.type != "cpu" or config.run.compile or "run.precision" not in ready.reasons:
        return [(precision, layout)]
    made = None if is_vit(model.backbone) else outline(model.backbone, config.data.size, stem=model.stem)
    simple = made is None or (made.family == "cnn" and not made.grouped)
    can = cpu_bfloat16()
    if can is False or (can and simple):
        return [(precision, layout)]
    either = "model.memory_format" in ready.reasons and layout == "channels_last" and not simple
    return [
        (one, other)
        for one in ("float32", "bfloat16")
        for other in (["channels_last", "contiguous"] if either else [layout])
    ]


def decided(ready: Resolved, ways: Sequence[Way], trial: Trial) -> Resolved:
    """The configuration with what the trial says, and its figures as reasons."""
    config, reasons = ready.config, dict(ready.reasons)
    asked = [key for part, key in enumerate(_KEYS) if len({way[part] for way in ways}) > 1]
    if not trial.seconds:
        for key in asked:
            reasons[key] = f"{reasons[key]}; not measured: {trial.problem}"
        return replace(ready, reasons=reasons)
    chosen = fastest(trial.seconds)
    for part, key in enumerate(_KEYS):
        if key in asked:
            reasons[key] = _told(trial, chosen, part)
    run = replace(config.run, precision=chosen[0])  # type: ignore[arg-type]
    model = replace(config.model, memory_format=chosen[1])  # type: ignore[arg-type]
    return replace(ready, config=replace(config, run=run, model=model), reasons=reasons)


def fastest(seconds: Mapping[Way, float]) -> Way:
    """The way to go: the usual precision and memory format unless another one is clearly faster."""
    best = {}
    for precision in dict.fromkeys(way[0] for way in seconds):
        way = _preferred({way: found for way, found in seconds.items() if way[0] == precision}, 1)
        best[way] = seconds[way]
    return _preferred(best, 0)


def _preferred(seconds: Mapping[Way, float], part: int) -> Way:
    """Of ways that differ in one part."""
    best = min(seconds, key=lambda way: seconds[way])
    usual = [way for way in seconds if way[part] == _USUAL[part]]
    return best if not usual or seconds[best] <= CLEARLY * seconds[usual[0]] else usual[0]


def _told(trial: Trial, chosen: Way, part: int) -> str:
    """ "a step of 64 images took 41 ms …, 78 ms in bfloat16": each other value by the best it came to."""
    others: dict[str, float] = {}
    for way, seconds in trial.seconds.items():
        if way[part] != chosen[part] and (part == 0 or way[0] == chosen[0]):
            others[way[part]] = min(seconds, others.get(way[part], seconds))
    own = f"a step of {trial.images} images took {_time(trial.seconds[chosen])} of processor time"
    if not others:
        return f"{own}; the other one ended the process that tried it"
    return ", ".join([own, *(f"{_time(seconds)} in {name}" for name, seconds in others.items())])


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def tried(ready: Resolved, ways: Sequence[Way], console: Console) -> Trial:
    """The steps in a process of their own; a way that ends it is left out, and the others tried again."""
    console.say(f"trying a few steps in {', '.join(f'{one} {other}' for one, other in ways)}")
    config, left = ready.config, list(ways)
    part = config.run.batch_size // config.run.devices
    asked = {
        "config": settings_of(config),
        "info": asdict(ready.info),
        "images": min(config.run.micro_batch or part, part),
        "threads": torch.get_num_threads(),
        "limit": _LIMIT,
    }
    while left:
        try:
            done = _process({**asked, "ways": left})
        except (OSError, subprocess.TimeoutExpired) as problem:
            return Trial(problem=first_line(problem))
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode == 0 and lines:
            found = dict(zip(left, lines[-1]["seconds"], strict=True))
            return Trial(lines[-1]["images"], found)
        begun = [line["trying"] for line in lines if "trying" in line]
        if done.returncode >= 0 or not begun:
            said = done.stderr.strip().splitlines()
            return Trial(problem=said[-1] if said else f"exit status {done.returncode}")
        left.remove(left[begun[-1]])
    return Trial(problem="every way ended the process that tried it")


def _process(asked: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """timed.py: none of several processes, without a GPU, with the modules that this one has."""
    of_several = ("RANK", "WORLD_SIZE", "LOCAL_", "SLURM_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(of_several)}
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-P", "-m", "sslkit.training.pretrain.timed"]
    return subprocess.run(
        command,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment,
        timeout=_PATIENCE,
        check=False,
    )
