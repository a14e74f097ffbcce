"""Seconds that a step takes in several ways, in a process of its own, which runs this module.

It reads one JSON object and writes one. What torch may do to the process, or a random generator, a weight and
a statistic may suffer, is nothing that the run would ever notice.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from sslkit.core import allocator
from sslkit.core.device import to_device
from sslkit.data.sources.image_set import open_images
from sslkit.methods import configuration
from sslkit.methods.base import Batch, Clock, Info
from sslkit.models.encoder import Encoder, lay_out_
from sslkit.training.loop.acceleration import accelerate_
from sslkit.training.loop.engine import accumulated, split
from sslkit.training.loop.sample import sample
from sslkit.training.run.folder import build_method

Way = tuple[str, str]
"""Precision and memory format of a step."""

FEW = 8
"""Images of the first two steps, which tell how many there is time for."""
_ROUNDS = 5
"""Turns that each way gets at most; its fastest counts, as whatever else the machine does only adds to it."""


def timed(
    step: Callable[[Way, int], None],
    ways: Sequence[Way],
    images: int,
    fewest: int,
    limit: float,
    clock: Callable[[], float] = time.perf_counter,
    work: Callable[[], float] = time.process_time,
    trying: Callable[[int], object] = lambda number: None,
) -> tuple[int, dict[Way, float]]:
    """Seconds of a step in each way, and of how many images it was.

    Processor time counts, of all threads: other programs stretch a step by the clock, and each way by another
    factor.

    Args:
        step: computes one, of so many images.
        images: of a real step; fewer are taken where these do not fit the limit. With few, what does not grow
            with them (rounding the weights) counts for too much.
        fewest: images that a step takes at least.
        limit: seconds for all of it by the clock, about.
        clock, work: seconds, and seconds of processor time.
        trying: told before the first step of each way; it may be the last that is heard.
    """

    def seconds(way: Way, count: int) -> float:
        began = work()
        step(way, count)
        return work() - began

    began, count = clock(), min(images, max(FEW, fewest))
    trying(0)
    step(ways[0], count)  # plans and memory are made in the first one
    first = clock()
    step(ways[0], count)
    an_image = (clock() - first) * len(ways) / count  # a way's first step takes about two, and two are timed
    count = max(count, min(images, int((limit - (clock() - began)) / (4 * an_image))))
    for number, way in enumerate(ways):
        trying(number)
        step(way, count)
    turn = clock()
    found = {way: seconds(way, count) for way in ways}
    turn = clock() - turn
    for _ in range(_ROUNDS - 1):
        if clock() - began + turn > limit:
            break
        found = {way: min(found[way], seconds(way, count)) for way in ways}
    return count, found


def steps_of(asked: Mapping[str, Any]) -> tuple[Callable[[Way, int], None], int]:
    """Forward and backward of the run that is asked about, with first weights; the fewest images it takes."""
    values = dict(asked["config"])
    name = values.pop("method.name")
    config = configuration(name, values)
    device = torch.device(config.run.device)
    method: Any = build_method(config, Info(**asked["info"])).to(device).train()
    # Gradients that one precision needs leave the other as it is.
    accelerate_(method, replace(config, run=replace(config.run, precision="bfloat16")), device)
    images = method.dataset(open_images(["fractal:1"]))
    batch = to_device(sample(images, method.transform(), asked["images"]), device)
    encoders = [module for module in method.modules() if isinstance(module, Encoder)]
    parts: dict[int, Batch] = {}

    def step(way: Way, count: int) -> None:
        precision: Any = way[0]
        for encoder in encoders:
            if encoder.family == "cnn":
                lay_out_(encoder.model, getattr(torch, _FORMATS[way[1]]))
        part = parts.setdefault(count, split(batch, count)[0])
        if accumulated(method, [part], Clock(0, 1, 1, config.run.seed), device, precision) is None:
            raise MemoryError(f"{count} images at once")
        method.zero_grad(set_to_none=True)

    return step, method.minimum_batch


_FORMATS = {"channels_last": "channels_last", "contiguous": "contiguous_format"}


def _main() -> None:
    asked = json.load(sys.stdin)
    allocator.keep_memory()
    torch.set_num_threads(asked["threads"])
    step, fewest = steps_of(asked)
    ways = [(precision, layout) for precision, layout in asked["ways"]]
    count, found = timed(step, ways, asked["images"], fewest, asked["limit"], trying=_tell)
    print(json.dumps({"images": count, "seconds": [found[way] for way in ways]}))


def _tell(number: int) -> None:
    print(json.dumps({"trying": number}), flush=True)


if __name__ == "__main__":
    _main()
