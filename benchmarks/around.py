"""What goes around a method, as a share of a step: `python benchmarks/around.py FOLDER` of images.

A step is ViT-Ti, forwards and backwards on two views of sixteen images; all are measured in turns by the
processor time of one thread, the quickest of five.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from PIL import Image

from sslkit.augmentations import batch
from sslkit.augmentations.curricula.shrink import shrunk


class Moment(NamedTuple):
    seed: int = 1
    step: int = 3
    epoch: int = 0


def measured(files: list[Path], side: int, patch: int) -> dict[str, float]:
    """Seconds of a step, of each augmentation and of a crop to five sevenths of the side."""
    pixels = [np.array(Image.open(file).convert("RGB").resize((side, side))) for file in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    network = timm.create_model("vit_tiny_patch16_224", img_size=side, patch_size=patch, num_classes=0)
    views, index = {"first": images, "second": images.flip(-1)}, torch.arange(len(images))

    def step() -> None:
        for view in views.values():
            network(view).square().mean().backward()

    jobs: dict[str, Callable[[], object]] = {"step": step, "crop": partial(shrunk, views, 5 / 7, patch)}
    for name in batch.names():
        kind = batch.load(name)
        augment = kind(kind.Config())
        jobs[name] = partial(augment, views, index, Moment())
    best = dict.fromkeys(jobs, float("inf"))
    for turn in range(6):  # the first one warms caches up
        for name, job in jobs.items():
            began = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - began) if turn else best[name]
    return best


def main() -> None:
    torch.set_num_threads(1)
    found = sorted(file for file in Path(sys.argv[1]).rglob("*.jpg"))
    files = found[:: max(1, len(found) // 16)][:16]
    for side, patch in ((224, 16), (96, 16), (32, 4)):
        seconds = measured(files, side, patch)
        shares = {name: f"{value / seconds['step']:.2%}" for name, value in seconds.items() if name != "step"}
        print(f"{side} px, patch {patch}: step {seconds['step']:.2f} s", shares)


if __name__ == "__main__":
    main()
