"""Many steps measured in one process: the table of docs/benchmarks.md, or the lines that the suite judges.

python table.py                      # a table in Markdown
python table.py --options --json     # every option of MFM, one JSON object a line
python table.py --only "mfm .*vit"   # cases whose name matches
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any

import rehearsal  # before torch

# isort: split
import torch
import traffic
from launches import CUDA, LOG, Case, Figures, measured, watch

from sslkit.augmentations.crops import RandomResizedCrop
from sslkit.core.device import to_device
from sslkit.training.loop import cached_loader

VIT, CNN = "vit_small_patch16_224", "resnet50"
CASES = [
    Case("mfm", VIT),
    Case("mae", VIT),
    Case("simmim", VIT),
    Case("simclr", VIT),
    Case("moco", VIT),
    Case("byol", VIT),
    Case("dino", VIT),
    Case("mfm", "vit_base_patch16_224"),
    Case("mfm", CNN),
    Case("mfm", "swin_tiny_patch4_window7_224"),
    Case("mfm", "convnext_tiny", batch=64),
    Case("mfm", "resnet18", batch=64, size=96),
    Case("simclr", CNN),
    Case("moco", CNN),
    Case("byol", CNN),
    Case("dino", CNN, batch=128),
]

OPTIONS: list[dict[str, Any]] = [
    {"method.mask": "square"},
    {"method.mask": "rhombus"},
    {"method.mask": "gaussian"},
    {"method.mask": "butterworth", "method.radius_range": (0.5, 1.5)},
    {"method.mask": "adaptive"},
    {"method.radius_range": (0.5, 1.5)},
    {"method.corruption": "sr"},
    {"method.corruption": "deblur"},
    {"method.corruption": "denoise"},
    {"method.clamp": "half"},
    {"method.clamp": "none"},
    {"method.target": "all"},
    {"method.gamma": 2.0},
    {"method.reduction": "per_sample"},
    {"method.reduction": "balanced"},
    {"method.stratified": True},
    {"method.teacher_weight": 1.0},
]
"""Of MFM, each beside its defaults."""


def small(settings: dict[str, Any], micro_batch: int = 0) -> Case:
    return Case("mfm", "resnet18", batch=8, size=64, micro_batch=micro_batch, settings=settings)


def name_of(case: Case) -> str:
    settings = [f"{key}={value}" for key, value in case.settings.items()]
    at_once = [f"micro-batch {case.micro_batch}"] * bool(case.micro_batch)
    return ", ".join([f"{case.method} {case.backbone} {case.batch} × {case.size} px", *at_once, *settings])


def row(case: Case) -> dict[str, Any]:
    figures, config = measured(case)
    return {"name": name_of(case), "precision": config.run.precision, **dataclasses.asdict(figures)}


def cut_out() -> dict[str, Any]:
    """Two views of 256 images that are kept on the device, without the drawing of their boxes."""
    crops, count = {"first": RandomResizedCrop(32), "second": RandomResizedCrop(32)}, 256
    whole = torch.zeros(1000, 3, 32, 32, dtype=torch.uint8, device="cuda")
    box = torch.tensor([3, 4, 20, 10, 1]).repeat(count, 1)
    sketches = {"index": torch.arange(count), **dict.fromkeys(crops, box)}
    pinned = {name: tensor.pin_memory() for name, tensor in sketches.items()}
    batches = cached_loader._cut_out((dict(pinned) for _ in range(2)), whole, crops)
    next(batches)
    LOG.clear()
    LOG.listening = True
    with traffic.Traffic() as moved:
        next(batches)
    LOG.listening = False
    waits = {line: float(count) for (_, line), count in LOG.waits.items()}
    name = f"cutting two views of {count} × 32 px out of images on the device"
    figures = Figures(
        LOG.launched(), LOG.launched(), waits, torch.cuda.max_memory_allocated(), moved.outside()
    )
    return {"name": name, "precision": "uint8", **dataclasses.asdict(figures)}


def sent() -> dict[str, Any]:
    """A batch on its way to the device: on which streams, and whether its memory is given away too early."""
    batch = {
        "image": torch.zeros(256, 3, 224, 224, dtype=torch.uint8).pin_memory(),
        "index": torch.arange(256).pin_memory(),
    }
    to_device(batch, CUDA)
    LOG.clear()
    LOG.listening = True
    with traffic.Traffic() as moved:
        to_device(batch, CUDA)
    LOG.listening = False

    def places() -> set[int]:
        """Where the indices lie of three batches, each of them gone when the next one is sent."""
        return {to_device(batch, CUDA)["index"].data_ptr() for _ in range(3)}

    idle = places()
    with rehearsal.busy():
        still_read = places()
    figures = Figures(
        LOG.launched(),
        LOG.launched(),
        {line: float(count) for (_, line), count in LOG.waits.items()},
        torch.cuda.max_memory_allocated(),
        moved.outside(),
    )
    return {
        "name": "sending 256 × 224 px to the device",
        "precision": "uint8",
        **dataclasses.asdict(figures),
        "beside": sum(
            count for (way, _), count in LOG.copies.items() if way == "pinned host to device beside"
        ),
        "copies": sum(LOG.copies.values()),
        "ordered": LOG.ordered["the usual stream waits"],
        "held": (len(idle), len(still_read)),
    }


def markdown(figures: dict[str, Any]) -> str:
    cells = [
        figures["name"],
        f"{figures['launches']:,.0f}",
        f"{figures['outside']:,.0f}",
        f"{sum(figures['waits'].values()):g}",
        f"{figures['peak'] / 2**30:.1f}",
        f"{figures['bytes'] / 2**30:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--options", action="store_true", help="MFM's options on a small CNN instead")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    words = parser.parse_args()
    watch()
    cases = [small({}, micro_batch=4), *map(small, OPTIONS)] if words.options else CASES
    rows: list[Callable[[], dict[str, Any]]] = [
        functools.partial(row, case) for case in cases if re.search(words.only, name_of(case))
    ]
    if not words.json:
        print("| step | launches | outside the encoder | host waits | peak GiB | GiB moved outside |")
        print("| --- | --- | --- | --- | --- | --- |")
    for one in (*rows, cut_out, sent):
        figures = one()
        print(json.dumps(figures) if words.json else markdown(figures), flush=True)


if __name__ == "__main__":
    main()
    rehearsal.leave(0)
