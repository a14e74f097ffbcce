"""What one pre-training step asks of a GPU: launches, host waits with their source lines, peak memory.

    python launches.py mfm vit_small_patch16_224
    python launches.py dino resnet50 --batch 128 --set method.local_crops=4 --detail

One line, then one for each source line that made the host wait. "Outside the encoder" is all but the encoder
and its momentum copy: corruption, photometry, heads, losses, clipping, the optimizer. table.py measures many.
"""

from __future__ import annotations

import argparse
import collections
import functools
import gc
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import rehearsal  # before torch

# isort: split
import patches
import torch
import traffic
from torch import Tensor

from sslkit.core.config.build import build_pretrain
from sslkit.methods import card
from sslkit.methods.base import Clock
from sslkit.models.encoder import Encoder
from sslkit.training.loop import engine
from sslkit.training.loop.optim import pretraining
from sslkit.training.pretrain.auto import resolve
from sslkit.training.run.folder import build_method

CUDA = torch.device("cuda")
LOG = rehearsal.LOG
IMAGES = 100_000  # of an imagined dataset
MEASURED = 2  # steps, after a first one in which optimizer state and caches are made
ENCODER = ("encoder forward", "encoder backward", "momentum encoder")
DOORS = ("maps", "vector", "tokens", "masked_map")  # the encoder's public methods
ENGINE = {  # functions of sslkit.training.loop.engine → phase
    "to_device": "to the device",
    "clip_gradients_": "clipping",
    "_gathered": "metrics",
    "update_if": "optimizer",
}


class EncoderBegins(torch.autograd.Function):
    """The identity; when the gradient comes through, the rest of the backward pass is the encoder's."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        LOG.phase = "encoder backward"
        return gradient


@dataclass(frozen=True)
class Case:
    """A step to be measured."""

    method: str
    backbone: str
    batch: int = 256
    size: int = 224
    micro_batch: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """What a step asks for."""

    launches: float
    outside: float  # launches outside the encoder
    waits: dict[str, float]  # source line → how often the host waits for the device there
    peak: int  # bytes of torch's allocator
    bytes: int  # that operations outside the encoder read and write


def marked(output: Any) -> Any:
    """An encoder's output, a tensor or several, with `EncoderBegins` behind each."""
    if isinstance(output, Tensor):
        return EncoderBegins.apply(output) if output.requires_grad else output
    if isinstance(output, list):
        return [marked(one) for one in output]
    if isinstance(output, tuple):
        parts = [marked(one) for one in output]
        return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)
    return output


def watch_encoder() -> None:
    inside = False  # one door may call another

    def watched(door: Any) -> Any:
        @functools.wraps(door)
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:
                return door(*args, **options)
            inside = True
            try:
                with rehearsal.phase("encoder forward" if torch.is_grad_enabled() else "momentum encoder"):
                    output = door(*args, **options)
            finally:
                inside = False
            return marked(output)

        return wrapped

    for name in DOORS:
        setattr(Encoder, name, watched(getattr(Encoder, name)))


def watch_engine() -> None:
    for name, phase in ENGINE.items():
        if hasattr(engine, name):  # private ones may go; their launches are then "other"
            setattr(engine, name, rehearsal.in_phase(phase, getattr(engine, name)))
    torch.Tensor.backward = rehearsal.in_phase("backward outside", torch.Tensor.backward)  # type: ignore[method-assign]


def watch() -> None:
    """Once, before anything is measured."""
    patches.compiled_on_the_way()
    watch_encoder()
    watch_engine()


def configured(case: Case) -> tuple[Any, Any]:
    """The method and its configuration as `sslkit pretrain` would have them."""
    known = card(case.method)
    values = {
        **known.facts["defaults"],
        "data.sources": ["fractal:16"],
        "data.size": case.size,
        "model.backbone": case.backbone,
        "run.batch_size": case.batch,
        "run.device": "cuda",
        "run.out": "nowhere",
        "schedule.epochs": 10,
        **case.settings,
    }
    ready = resolve(build_pretrain(known.name, known.Config, values), IMAGES, 256, CUDA)
    return build_method(ready.config, ready.info).train().to(CUDA), ready.config


def measured(case: Case) -> tuple[Figures, Any]:
    """A step's figures, and the configuration; the log keeps what was launched in `MEASURED` steps."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    LOG.clear()
    method, config = configured(case)
    steps = stepping(method, config, case.micro_batch)
    next(steps)
    LOG.phase, LOG.listening = "other", True
    for _ in range(MEASURED):
        next(steps)
    LOG.listening = False
    peak = torch.cuda.max_memory_allocated()
    with traffic.Traffic() as moved:
        next(steps)
    waits: collections.Counter[str] = collections.Counter()
    for (_, line), count in LOG.waits.items():
        waits[line] += count
    figures = Figures(
        launches=LOG.launched() / MEASURED,
        outside=(LOG.launched() - LOG.launched(*ENCODER)) / MEASURED,
        waits={line: count / MEASURED for line, count in waits.most_common()},
        peak=peak,
        bytes=moved.outside(*ENCODER),
    )
    return figures, config


def stepping(method: Any, config: Any, micro_batch: int) -> Iterator[Any]:
    """The real training loop on a pinned batch, a step whenever one is asked for."""
    batch_size = config.run.batch_size
    batch = {
        name: torch.zeros(batch_size, 3, view.size, view.size, dtype=torch.uint8).pin_memory()
        for name, view in method.transform().views.items()
    }
    batch["index"] = torch.arange(batch_size).pin_memory()
    an_epoch = IMAGES // batch_size
    clock = Clock(2 * an_epoch, config.schedule.epochs * an_epoch, an_epoch, 0)  # nothing is frozen any more
    optimizer, schedule = pretraining(method, config, clock)
    method.forward = rehearsal.in_phase("forward outside", method.forward)
    method.after_step = rehearsal.in_phase("after the step", method.after_step)

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            yield dict(batch)

    return engine.train(
        method,
        batches(),
        optimizer,
        schedule,
        (clock.at(clock.step + i) for i in range(2 + MEASURED)),
        device=CUDA,
        precision=config.run.precision,
        clip=config.optim.clip,
        clip_by=config.optim.clip_by,
        micro_batch=micro_batch,
    )


def report(case: Case, figures: Figures, precision: str) -> None:
    print(
        f"{case.method} {case.backbone}, batch {case.batch}, {precision}:"
        f" {figures.launches:g} launches a step, {figures.outside:g} outside the encoder,"
        f" {sum(figures.waits.values()):g} host waits, peak memory {figures.peak / 2**30:.1f} GiB,"
        f" {figures.bytes / 2**30:.1f} GiB moved outside the encoder"
    )
    for line, count in figures.waits.items():
        print(f"  waits {count:g} × in {line}")


def detail() -> None:
    """Copies by source line, then launches by phase and name."""
    for (way, line), count in LOG.copies.most_common():
        print(f"  copies {count / MEASURED:g} × {way}: {line}")
    names = sorted({name for _, name in LOG.launches})
    readable = dict(zip(names, demangled(names), strict=True))
    phases = {phase: LOG.launched(phase) for phase, _ in LOG.launches}
    for phase, total in sorted(phases.items(), key=lambda item: -item[1]):
        print(f"  {phase}: {total / MEASURED:g}")
        for (where, name), count in LOG.launches.most_common():
            if where == phase:
                print(f"    {count / MEASURED:g} × {readable[name][:200]}")


def demangled(names: list[str]) -> list[str]:
    """Names of C++ as they are written; as they are if binutils' c++filt is missing."""
    try:
        told = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return names
    return told.stdout.splitlines()


def setting(text: str) -> tuple[str, Any]:
    """`method.mask=adaptive` or `data.crop_scale=[0.2,1]`: a key and its value."""
    key, _, value = text.partition("=")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value
    return key, tuple(parsed) if isinstance(parsed, list) else parsed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("backbone", metavar="BACKBONE")
    parser.add_argument("--batch", type=int, default=256, help="images a step (256)")
    parser.add_argument("--size", type=int, default=224, help="side of an image (224)")
    parser.add_argument("--micro-batch", type=int, default=0, help="images at once; 0: the whole batch")
    parser.add_argument("--set", type=setting, nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--detail", action="store_true", help="also copies, and launches by phase and kernel")
    words = parser.parse_args()
    watch()
    settings = dict(words.set)
    case = Case(words.method, words.backbone, words.batch, words.size, words.micro_batch, settings)
    figures, config = measured(case)
    report(case, figures, config.run.precision)
    if words.detail:
        detail()


if __name__ == "__main__":
    main()
    rehearsal.leave(0)
