"""Every method on CIFAR-10: pre-train, kNN and linear probe, fine-tune beside scratch; one table.

    python benchmarks/cifar10.py cifar10 runs/cifar10                       # the recipes' own lengths: a GPU
    python benchmarks/cifar10.py cifar10 runs/small --images 4000 --test 2000 --epochs 8 --batch-size 128
    python benchmarks/cifar10.py cifar10 runs/cifar10 --methods mfm mae --seeds 0 1 2 --finetune-epochs 100

DATA holds train/ and test/ with a folder of JPEG or PNG images for each class. What is finished is not done
again: the same command goes on after a stop, a run in the middle of its training included. Results lie in
OUT/results.jsonl, one line for each finished part; the table is made of them at the end of every call.

Methods with a ResNet recipe are judged by frozen features, masked-image methods by fine-tuning, both beside
baselines: random weights and raw pixels there, scratch at the same budget here.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import sslkit
from sslkit.config import read
from sslkit.console import Console

METHODS = ("mfm", "mae", "simmim", "simclr", "moco", "byol", "dino")
FINETUNED = ("mfm", "mae", "simmim")
NEIGHBOURS = 200


def table_of_images(data: Path, out: Path, images: int, test: int) -> Path:
    """A .csv of path, label and split: the first images of every class, all of them for 0."""
    file = out / f"images-{images}-{test}.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("path", "label", "split"))
        for split, wanted in (("train", images), ("test", test)):
            classes = sorted(path for path in (data / split).iterdir() if path.is_dir())
            for folder in classes:
                for path in sorted(folder.iterdir())[: wanted // len(classes) or None]:
                    rows.writerow((path.resolve(), folder.name, "train" if split == "train" else "val"))
    return file


def list_of_images(table: Path) -> Path:
    """The training images of the table as a list without labels, which is all that pre-training may see."""
    file = table.with_suffix(".txt")
    with table.open(encoding="utf-8", newline="") as stream:
        paths = [row["path"] for row in csv.DictReader(stream) if row["split"] == "train"]
    file.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    return file


class Results:
    """Finished parts as lines of JSON: a part with a known name is not done again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        self.parts: dict[str, dict[str, Any]] = {line["part"]: line for line in map(json.loads, lines)}

    def once(self, part: str, work: Callable[[], dict[str, Any]]) -> None:
        if part in self.parts:
            return
        start = time.time()
        line = {"part": part, **work(), "seconds": round(time.time() - start, 1)}
        self.parts[part] = line
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def pretrained(
    run: Path, method: str, images: Path, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Train, or go on with, the run of one method."""
    if (run / "run.json").is_file():
        if json.loads((run / "run.json").read_text(encoding="utf-8")).get("status") != "completed":
            sslkit.pretrain(resume=run, console=Console())
    else:
        flags = {"epochs": options.epochs, "batch_size": options.batch_size, "device": options.device}
        # A recipe's warm-up, and AdamW's rate in it, are for its own length and batch.
        short = ["schedule.warmup_epochs=auto"] if options.epochs is not None else []
        settings = short + ["optim.lr=auto"] * bool(short and method in FINETUNED)
        # Keys of an image's own past are no negatives: the recipe's queue is for all 50,000.
        settings += ["method.queue=auto"] * bool(options.images and method == "moco") + options.set
        recipe, console = f"{method}-cifar10", Console()
        sslkit.pretrain(
            images, config=recipe, settings=settings, seed=seed, out=run, console=console, **flags
        )
    config = read(str(run / "config.toml"))
    return {name: config[name] for name in ("model.backbone", "schedule.epochs", "run.batch_size")}


def probed(run: Path, table: Path, options: argparse.Namespace) -> dict[str, Any]:
    result = sslkit.probe(
        run, data=table, k=NEIGHBOURS, readout="mean", device=options.device, console=Console()
    )
    return {row.name: {"knn": row.knn, "linear": row.linear} for row in result.rows}


def finetuned(
    source: Path, table: Path, seed: int, options: argparse.Namespace, scratch: bool
) -> dict[str, Any]:
    folder = options.out / f"finetune-{source.name}{'-scratch' if scratch else ''}"
    if folder.exists():  # fine-tuning has no resume: what was cut off is put aside
        folder.rename(folder.with_name(f"{folder.name}-cut-off-{int(time.time())}"))
    result = sslkit.finetune(
        source, table, epochs=options.finetune_epochs, seed=seed, scratch=scratch, out=folder,
        device=options.device, console=Console(),
    )  # fmt: skip
    return {"top1": result.top1}


def rows(results: Results, options: argparse.Namespace) -> Iterator[list[str]]:
    for method in options.methods:
        for seed in options.seeds:
            name = f"{method}-{seed}"
            trained = results.parts.get(f"{name}/pretrain")
            frozen = results.parts.get(f"{name}/probe")
            if trained is None or frozen is None:
                continue
            figures = {key: value for key, value in frozen.items() if isinstance(value, dict)}
            own, random, pixels = list(figures.values())
            tuned = results.parts.get(f"{name}/finetune", {}).get("top1")
            scratch = results.parts.get(f"{name}/scratch", {}).get("top1")
            yield [
                method, str(trained["model.backbone"]), str(trained["schedule.epochs"]), str(seed),
                f"{trained['seconds']:.0f}",
                *(f"{own[k]:.1f} / {random[k]:.1f} / {pixels[k]:.1f}" for k in ("knn", "linear")),
                "" if tuned is None or scratch is None else f"{tuned:.1f} / {scratch:.1f}",
            ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=0, help="training images; 0: all")
    parser.add_argument("--test", type=int, default=0, help="test images; 0: all")
    parser.add_argument("--epochs", type=int, default=None, help="by default the recipe's")
    parser.add_argument("--batch-size", type=int, default=None, help="by default the recipe's")
    parser.add_argument("--finetune-epochs", type=int, default=None, help="by default the tool's choice")
    parser.add_argument("--set", action="append", default=[], help="a setting of every pre-training")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = table_of_images(options.data, options.out, options.images, options.test)
    images, results = list_of_images(table), Results(options.out / "results.jsonl")
    for method in options.methods:
        for seed in options.seeds:
            name, run = f"{method}-{seed}", options.out / f"{method}-{seed}"
            results.once(f"{name}/pretrain", partial(pretrained, run, method, images, seed, options))
            results.once(f"{name}/probe", partial(probed, run, table, options))
            if method in FINETUNED:
                results.once(f"{name}/finetune", partial(finetuned, run, table, seed, options, False))
                results.once(f"{name}/scratch", partial(finetuned, run, table, seed, options, True))
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    print(f"\nsslkit {sslkit.__version__}, torch {torch.__version__}, {place}, {time.strftime('%Y-%m-%d')}")
    print("kNN and linear: own / random weights / raw pixels; fine-tuned: own / scratch; all in percent")
    print("method | backbone | epochs | seed | seconds | kNN | linear | fine-tuned")
    print(" | ".join(["---"] * 8))
    for row in rows(results, options):
        print(" | ".join(row))


if __name__ == "__main__":
    main()
