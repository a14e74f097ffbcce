"""What a save asks of a GPU: host waits, of the step and of the thread that writes, and what stays pinned.

    python saving.py                     # of vit_tiny_patch16_224 with AdamW
    python saving.py resnet18 --json     # the line that the suite judges

Two saves, as a run makes them; the second one takes no memory. Copies of up to 64 MiB are really made here,
so that the file's values are compared with those of the device.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import rehearsal  # before torch

# isort: split
import torch
from launches import LOG, Case, configured
from safetensors.torch import load_file

from sslkit.core.console import SILENT
from sslkit.methods.base import Clock
from sslkit.training.loop.optim import pretraining
from sslkit.training.run.checkpoint_writer import Writer
from sslkit.training.run.snapshot import snapshot


def trained(backbone: str) -> tuple[Any, Any]:
    """A method and its optimizer on the device, with values in weights and moments."""
    method, config = configured(Case("mfm", backbone, batch=2, size=96))
    method = method.to(memory_format=torch.channels_last) if "resnet" in backbone else method
    optimizer, _ = pretraining(method, config, Clock(0, 10, 10, 0))
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    numbers = torch.Generator().manual_seed(0)
    content = snapshot(method, optimizer)
    for tensor in content.tensors():
        if tensor.is_cuda and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=numbers))
    return method, optimizer


def saved(backbone: str) -> dict[str, Any]:
    """What the second of two saves waits for, what each has pinned, and whether the file holds the values."""
    method, optimizer = trained(backbone)
    content = snapshot(method, optimizer)
    pinned = []
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder), background=True, console=SILENT)
        for step in (1, 2):
            LOG.clear()
            LOG.listening = True
            writer.save(step, method, optimizer, {})
            writer.settle()
            LOG.listening = False
            pinned.append(_pinned())
        newest = Path(folder) / "step-00000002"
        files = load_file(newest / "model.safetensors"), load_file(newest / "optimizer.safetensors")
    parts = (content.weights, content.rest)
    equal = all(
        torch.equal(file[name], tensor.cpu())
        for file, part in zip(files, parts, strict=True)
        for name, tensor in part.items()
    )
    return {
        "name": backbone,
        "tensors": sum(map(len, parts)),
        "bytes": content.bytes,
        "pinned": pinned,
        "waits": sum(LOG.waits.values()),
        "copies": sum(count for (way, _), count in LOG.copies.items() if way.startswith("device to")),
        "equal": equal,
    }


def _pinned() -> int:
    """Bytes that torch has pinned so far; 0 where it does not say (2.6)."""
    told: dict[str, Any] = getattr(torch.cuda, "host_memory_stats", dict)()
    return int(told.get("allocated_bytes.current", 0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", nargs="?", default="vit_tiny_patch16_224")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    words = parser.parse_args()
    found = saved(words.backbone)
    if words.json:
        print(json.dumps(found))
        return
    pinned = " and ".join(f"{size / 2**20:.1f}" for size in found["pinned"])
    print(
        f"{found['name']}: {found['tensors']} tensors, {found['bytes'] / 2**20:.1f} MiB;"
        f" {found['waits']} host waits; pinned {pinned} MiB after the first and second save;"
        f" written {'as it was' if found['equal'] else 'WITH OTHER VALUES'}"
    )


if __name__ == "__main__":
    main()
    rehearsal.leave(0)
