"""Ten steps of each method on the CPU in float32: what a change of structure must not change by a bit.

    python tests/golden/record.py            # compare with metrics.json, digit by digit
    python tests/golden/record.py --write    # after a change of the mathematics that the change log names

Last digits depend on the processor, and what is drawn at first on the versions of torch and timm:
tests/methods/test_golden.py compares with a tolerance, and skips with other versions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

import sslkit

STORED = Path(__file__).with_name("metrics.json")
CASES = {
    "mfm-vit": ("mfm", "test_vit", 32, ()),
    "mfm-resnet": ("mfm", "test_resnet", 32, ()),
    "mae": ("mae", "test_vit", 64, ("method.decoder_width=64", "method.decoder_depth=2")),
    "simmim": ("simmim", "test_vit", 64, ("method.unit=16",)),
    "moco": ("moco", "test_resnet", 32, ()),
    "simclr": ("simclr", "test_resnet", 32, ()),
    "byol": ("byol", "test_resnet", 32, ("method.hidden=64", "method.projection=32")),
    "dino": ("dino", "test_vit", 64, ("method.local_size=32", "method.outputs=256", "method.hidden=64")),
}
"""Name → method, backbone, size, settings."""
STEPS = 10
VERSIONS = {"torch": torch.__version__.partition("+")[0], "timm": timm.__version__}
MACHINE = ("images_per_s", "wait", "saving")
"""Figures of the machine, not of the training."""


def photos(folder: Path, count: int = 20) -> Path:
    """Smooth colours with some grain, different in every file."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((80, 72), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-9, 10, pixels.shape)
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def metrics(name: str, folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a case, without the machine's figures; makes folders below `folder`."""
    method, backbone, size, settings = CASES[name]
    data = folder / "photos"
    run = sslkit.pretrain(
        data if data.is_dir() else photos(data),
        method=method,
        backbone=backbone,
        size=size,
        batch_size=8,
        epochs=STEPS // 2,
        workers=0,
        device="cpu",
        precision="float32",
        out=folder / name,
        settings=[*settings, "run.log_every=1"],
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in MACHINE} for line in lines]


def main() -> int:
    """Compare, or write; the number of cases that differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        found = {name: metrics(name, Path(folder)) for name in CASES}
    if write:
        cases = {"versions": json.dumps(VERSIONS)}
        cases |= {name: "[\n" + ",\n".join(map(json.dumps, lines)) + "\n]" for name, lines in found.items()}
        text = ",\n".join(f'"{name}": {case}' for name, case in cases.items())
        STORED.write_text("{\n" + text + "\n}\n", encoding="utf-8")
        return 0
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    for name, lines in found.items():
        print(f"{name}: {'equal' if lines == stored[name] else 'DIFFERENT'}")
    return sum(lines != stored[name] for name, lines in found.items())


if __name__ == "__main__":
    sys.exit(main())
