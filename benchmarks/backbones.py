"""Does a backbone of every file of timm train and leave? A small one of each, one step of MFM, one export.

    python benchmarks/backbones.py runs/backbones                        # about half an hour of one core
    python benchmarks/backbones.py runs/backbones --only eva levit       # these files of timm again
    python benchmarks/backbones.py runs/backbones --table docs/backbones.md

Each runs in a process of its own, so that one that dies is a row and not the end, and without a network: who
opens a connection fails. What has a result in OUT is not done again. The exit code is 1 if any ends in
anything but a result or one line of refusal.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import shutil
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from sslkit.core.config.build import PretrainConfig
from sslkit.core.errors import UserError
from sslkit.exporting import export
from sslkit.methods import load
from sslkit.models.encoder import Encoder
from sslkit.models.factory import native_size
from sslkit.models.input_size import nearest_size, outline
from sslkit.training.pretrain.auto import resolve
from sslkit.training.pretrain.config import pretrain_config
from sslkit.training.pretrain.pretrain import pretrain

MORE = {
    "byoanet": ("halonet26t", "lambda_resnet26t"),
    "eva": ("vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_ape_224"),
}
"""Others of a file that differ in kind from the smallest one."""

LARGE = 60e6
"""Weights from which on the step is one of SGD: AdamW's state of 400 M weights has 3 GB."""

SMALL = 64
"""Side of the images, pixels, or the nearest that the model takes."""

SECONDS = 900
"""After which a model is given up."""

COLUMNS = (
    "file", "representative", "M weights", "native px", "tried px", "map, from", "hides patches",
    "MFM trains", "export differs", "refused or failed",
)  # fmt: skip

START, END = "<!-- table -->", "<!-- end of table -->"


def main() -> int:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = representatives(arguments.out / "representatives.json")
    for module, chosen in names.items():
        for name in (*chosen, *MORE.get(module, ())):
            if not timm.is_model(name) or (arguments.only and module not in arguments.only):
                continue
            file = arguments.out / f"{name}.json"
            if arguments.only or not file.exists():
                file.write_text(json.dumps({"module": module, **in_a_process(name, arguments.out)}))
            print(row(json.loads(file.read_text())), flush=True)
    return summarise(arguments.out, arguments.table)


def representatives(file: Path) -> dict[str, list[str]]:
    """timm's file → its model with the fewest weights, counted on the meta device."""
    if file.exists():
        known: dict[str, list[str]] = json.loads(file.read_text())
        return known
    found = {}
    for module in sorted(timm.list_modules()):
        sizes = {name: _weights(name) for name in timm.list_models(module=module)}
        if any(size < math.inf for size in sizes.values()):
            found[module] = [min(sizes, key=lambda name: sizes[name])]
    file.write_text(json.dumps(found, indent=1))
    return found


def _weights(name: str) -> float:
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, num_classes=0)
        return sum(weight.numel() for weight in model.parameters())
    except Exception:  # built in earnest where it is the smallest; here it only is not
        return math.inf


def in_a_process(name: str, out: Path) -> dict[str, Any]:
    """The result of one model, or how its process ended."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=lambda: there.send(measured(name, out)))
    process.start()
    there.close()
    try:
        if here.poll(SECONDS):
            result: dict[str, Any] = here.recv()
            return result
        return {"name": name, "failed": f"not done after {SECONDS} s"}
    except EOFError:
        process.join()
        return {"name": name, "failed": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def measured(name: str, out: Path) -> dict[str, Any]:
    """One step of MFM on two images, the export, and what else the backbone can do."""
    socket.socket.connect = _no_network  # type: ignore[method-assign]
    began = time.perf_counter()
    found: dict[str, Any] = {"name": name}
    folder = out / f"{name}-run"
    try:
        size = nearest_size(name, SMALL) or native_size(name)
        shape = outline(name, size)
        found |= {"size": size, "family": shape.family, "layout": shape.layout, "map": shape.map}
        found |= {"width": shape.width, "native": native_size(name), "weights": _weights(name)}
        outline(name, native_size(name))
        run = pretrain(_config(name, size, "mfm", folder, found["weights"]))
        found["trained"] = True
        result = export(run, folder / "export")
        found["difference"] = result.difference
        shutil.rmtree(folder)
        encoder = Encoder(name, size)
        found |= {method: _accepted(encoder, method, folder) for method in ("mae", "simmim", "dino")}
    except UserError as problem:
        found["refused"] = str(problem)
    except Exception as problem:
        traceback.print_exc()
        found["failed"] = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    shutil.rmtree(folder, ignore_errors=True)
    return {**found, "seconds": round(time.perf_counter() - began)}


def _config(name: str, size: int, method: str, folder: Path, weights: float) -> PretrainConfig:
    """Two generated images, one step, the rest as `pretrain` would have it."""
    flags = {"backbone": name, "size": size, "epochs": 1, "batch_size": 2, "device": "cpu", "workers": 0}
    flags |= {"precision": "float32", "out": folder}
    settings = ["optim.name=sgd"] if weights > LARGE else []
    return pretrain_config(["fractal:2"], method, settings=settings, flags=flags)


def _accepted(encoder: Encoder, method: str, folder: Path) -> str:
    """ "yes", or in how few words another method refuses the backbone."""
    config = _config(encoder.name, encoder.size, method, folder, 0)
    try:
        ready = resolve(config, 2, encoder.size, torch.device("cpu"))
        load(config.method_name)(ready.config.method, encoder, ready.info)
    except UserError as problem:
        return str(problem)
    return "yes"


def _no_network(*_: Any) -> None:
    raise RuntimeError("asked the network")


def row(result: dict[str, Any]) -> str:
    """One line of the table."""
    said = result.get("failed") or result.get("refused")
    trained = "yes" if result.get("trained") else "no"
    difference = f"{result['difference']:.0e}".replace("0e+00", "0") if "difference" in result else ""
    shape = " × ".join(map(str, result.get("map", ()))) or "none"
    maps = {"tokens": "tokens", "NCHW": "features", "NHWC": "features", "levels": "intermediates"}
    source = maps.get(result.get("layout", ""), "intermediates, no norm")
    hides = "yes" if result.get("mae") == "yes" else "SimMIM" if result.get("simmim") == "yes" else ""
    weights = f"{result.get('weights', 0) / 1e6:.1f}"
    native, tried = result.get("native", ""), result.get("size", "")
    cells = (
        f"`{result['module']}`", f"`{result['name']}`", weights, native, tried,
        f"{shape}, {source}" if "map" in result else "", hides, trained, difference, said or "",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def summarise(out: Path, table: Path | None) -> int:
    """Counts, and the table written between its marks."""
    results = [
        json.loads(file.read_text()) for file in sorted(out.glob("*.json")) if file.stem != "representatives"
    ]
    results.sort(key=lambda one: (one["module"], one["name"]))
    left = {one["module"] for one in results if "difference" in one}
    modules = {one["module"] for one in results}
    told = (
        f"Of {len(modules)} files of timm {timm.__version__}, a backbone of {len(left)} trained and was "
        f"exported with equal features (torch {torch.__version__.split('+')[0]}, {platform.machine()})."
    )
    print(told)
    if table is not None:
        head = "| " + " | ".join(COLUMNS) + " |"
        lines = [told, "", head, "|" + " --- |" * len(COLUMNS), *map(row, results)]
        before, _, rest = table.read_text(encoding="utf-8").partition(START)
        after = rest.partition(END)[2]
        text = "\n".join([before + START, *lines, END + after])
        table.write_text(text, encoding="utf-8")
    return int(any("failed" in one for one in results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, metavar="OUT", help="where results lie")
    parser.add_argument("--only", nargs="*", metavar="FILE", help="files of timm to do, again")
    parser.add_argument("--table", type=Path, metavar="PAGE", help="page with the marks of the table")
    return parser.parse_args()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
