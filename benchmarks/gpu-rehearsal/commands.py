"""Whole commands on a CUDA device that computes nothing, with too little memory for the batch; one process.

    python commands.py             # pretrain, which runs out of memory, --resume to twice the epochs, probe
    python commands.py --json      # a line for each, as the suite judges them

What sslkit says goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "GPU_REHEARSAL_MEMORY", "0.7"
)  # GiB: 16 images of 320 px are too many at once, 8 are not

import rehearsal  # before torch

# isort: split
import cli
import patches
import torch
from launches import LOG
from PIL import Image

SIZE, IMAGES = 320, 16
SETTINGS = ("run.pictures=0", "run.log_every=2", "data.cache=off")


def write_images(folder: Path) -> None:
    """Two classes of grey images, in two parts."""
    for part in ("train", "val"):
        for label in ("dark", "light"):
            (folder / part / label).mkdir(parents=True)
            for number in range(IMAGES // 4):
                grey = 100 * (label == "light") + 10 * number + (part == "val")
                image = Image.new("RGB", (SIZE, SIZE), (grey, grey, 255 - grey))
                image.save(folder / part / label / f"{number}.png")


def commands(folder: Path) -> dict[str, list[str]]:
    run, device = str(folder / "run"), ["--device", "cuda", "--workers", "0"]
    train = ["pretrain", str(folder / "images/train"), str(folder / "images/val"), "-b", "resnet18", *device]
    train += f"--size {SIZE} --batch-size {IMAGES} --epochs 2 --save-every 1".split()
    return {
        "pretrain": [*train, "--out", run, *(word for one in SETTINGS for word in ("-s", one))],
        "resume": ["pretrain", "--resume", run, "--epochs", "4"],
        "probe": ["probe", run, str(folder / "images"), *device],
    }


def called(name: str, words: list[str], run: Path) -> dict[str, Any]:
    """What a command ended with, and what it asked of the device."""
    sys.argv = ["sslkit", *words]
    LOG.clear()
    torch.cuda.reset_peak_memory_stats()
    LOG.listening = True
    with contextlib.redirect_stdout(sys.stderr):
        status = cli.run()
    LOG.listening = False
    told = run / "run.json"
    facts = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    return {
        "name": name,
        "status": status,
        "step": facts.get("step"),
        "at once": (facts.get("at_once") or {}).get("micro_batch"),
        "launches": LOG.launched(),
        "waits": {f"{function}: {line}": count for (function, line), count in LOG.waits.most_common()},
        "peak": torch.cuda.max_memory_allocated(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    as_json = parser.parse_args().json
    patches.results_that_matter()
    patches.losses_that_are_not_finite()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SSLKIT_CACHE"] = str(folder / "cache")
        write_images(folder / "images")
        for verb, words in commands(folder).items():
            found = called(verb, words, folder / "run")
            if as_json:
                print(json.dumps(found), flush=True)
                continue
            print(
                f"{verb}: exit status {found['status']}, step {found['step']}, {found['at once']} images"
                f" at once, {found['launches']} launches, peak {found['peak'] / 2**20:.0f} MiB"
            )
            for line, count in found["waits"].items():
                print(f"  {count} × {line}")


if __name__ == "__main__":
    main()
    rehearsal.leave(0)
