"""Every method on CIFAR-10: pre-train, kNN and linear probe, fine-tune on few and all labels beside scratch.

    python benchmarks/cifar10.py cifar10 runs/cifar10                       # the recipes' own lengths: a GPU
    python benchmarks/cifar10.py cifar10 runs/small --images 4000 --test 2000 --epochs 8 --batch-size 128
    python benchmarks/cifar10.py cifar10 runs/vit --methods mfm mae --labels 0.01:1000 0.1:300 1:100 \
        --finetune-seeds 0 1 2

DATA holds train/ and test/ with a folder of JPEG or PNG images for each class. What is finished is not done
again: the same command goes on after a stop, a run in the middle of its training included. Results lie in
OUT/results.jsonl, one line for each finished part; the tables are made of them at the end of every call.

Beside the methods stand the arms of MFM's own claims: its siblings (sr, deblur, denoise), one task alone
(mfm-low keeps high frequencies and predicts low ones, mfm-high the reverse), the whole spectrum as target
(mfm-all), other radii, and tasks that weigh the same (mfm-balanced).
Frozen features stand beside random weights and raw pixels, fine-tuning beside the same architecture from
scratch with the same images, steps and seeds; with --robust on corrupted test images too.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import sslkit
from sslkit.core.config.build import read
from sslkit.core.console import Console
from sslkit.evaluation.metrics.significance import STUDENT
from sslkit.finetuning.classifier_robustness import measure_classifiers
from sslkit.finetuning.comparison import SCRATCH
from sslkit.finetuning.config import from_values

METHODS = ("mfm", "mae", "simmim", "simclr", "moco", "byol", "dino")
VARIANTS = {
    "sr": ("method.corruption=sr",),
    "deblur": ("method.corruption=deblur", "method.sigma=0.71"),  # 5 px at 224, scaled to 32
    "denoise": ("method.corruption=denoise",),
    "mfm-low": ("method.low_share=0",),
    "mfm-high": ("method.low_share=1",),
    "mfm-all": ("method.target=all",),
    "mfm-radius-1": ("method.radius=1.15",),
    "mfm-radius-5": ("method.radius=4.6",),
    "mfm-balanced": ("method.reduction=balanced",),
    "mfm-half": ("method.clamp=half",),
}
"""Arms that are the recipe mfm-cifar10 but for these settings."""
MASKED = ("mfm", "mae", "simmim", *VARIANTS)
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


def pretrained(run: Path, arm: str, images: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on with, the run of one arm."""
    if (run / "run.json").is_file():
        if json.loads((run / "run.json").read_text(encoding="utf-8")).get("status") != "completed":
            sslkit.pretrain(resume=run, console=Console())
    else:
        flags = {"epochs": options.epochs, "batch_size": options.batch_size, "workers": options.workers}
        # A recipe's warm-up, and AdamW's rate in it, are for its own length and batch.
        short = ["schedule.warmup_epochs=auto"] if options.epochs is not None else []
        settings = short + ["optim.lr=auto"] * bool(short and arm in MASKED)
        # Keys of an image's own past are no negatives: the recipe's queue is for all 50,000.
        settings += ["method.queue=auto"] * bool(options.images and arm == "moco")
        settings += [*VARIANTS.get(arm, ()), *options.set]
        recipe = f"{'mfm' if arm in VARIANTS else arm}-cifar10"
        sslkit.pretrain(
            images, config=recipe, settings=settings, seed=seed, out=run, console=Console(),
            device=options.device, **flags,
        )  # fmt: skip
    config = read(str(run / "config.toml"))
    return {name: config[name] for name in ("model.backbone", "schedule.epochs", "run.batch_size")}


def probed(run: Path, table: Path, options: argparse.Namespace) -> dict[str, Any]:
    result = sslkit.probe(
        run, data=table, k=NEIGHBOURS, readout="mean", device=options.device, workers=options.workers,
        console=Console(),
    )  # fmt: skip
    return {row.name: {"knn": row.knn, "linear": row.linear} for row in result.rows}


def finetuned(
    source: Path,
    table: Path,
    share: float,
    epochs: int | None,
    seed: int,
    options: argparse.Namespace,
    scratch: bool,
) -> dict[str, Any]:
    """Fine-tune, or go on with it, on a share of the labels."""
    out = options.out / f"finetune-{source.name}{'-scratch' if scratch else ''}-{share:g}-{epochs}-{seed}"
    if out.exists() and not (out / "run.json").is_file():  # killed between its folder and its first file
        out.rename(out.with_name(f"{out.name}-cut-off-{int(time.time())}"))
    if not out.exists():
        sslkit.finetune(
            source, table, share=share, epochs=epochs, seed=seed, scratch=scratch, out=out,
            batch_size=options.finetune_batch_size, device=options.device, workers=options.workers,
            console=Console(),
        )  # fmt: skip
    elif json.loads((out / "run.json").read_text(encoding="utf-8"))["status"] != "completed":
        sslkit.finetune(resume=out, console=Console())
    top1 = json.loads((out / "run.json").read_text(encoding="utf-8"))["result"]["top1"]
    return {"top1": top1, "folder": out.name}


def robust(own: Sequence[Path], scratch: Sequence[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tuned classifiers on corrupted images, with their own heads, against those from scratch."""
    wanted = from_values(read(str(own[0] / "config.toml")))
    settings = replace(wanted.robustness, limit=options.robust_limit, attacks=options.attacks)
    found = measure_classifiers(
        {"own": own, SCRATCH: scratch}, replace(wanted, robustness=settings), Console()
    )
    return found.to_document()


def against(own: Sequence[float], scratch: Sequence[float]) -> str:
    """Mean and deviation of both over the seeds, and the paired difference with its 95 % interval."""
    if len(own) < 2:
        return f"{own[0]:.1f} / {scratch[0]:.1f}"
    gains = [first - second for first, second in zip(own, scratch, strict=True)]
    margin = STUDENT[len(gains) - 2] * statistics.stdev(gains) / len(gains) ** 0.5
    spread = f"{statistics.mean(own):.1f} ± {statistics.stdev(own):.1f} / "
    spread += f"{statistics.mean(scratch):.1f} ± {statistics.stdev(scratch):.1f}"
    return f"{spread} ({statistics.mean(gains):+.1f} ± {margin:.1f})"


def rows(results: Results, options: argparse.Namespace) -> Iterator[list[str]]:
    for arm in options.methods:
        for seed in options.seeds:
            name = f"{arm}-{seed}"
            trained = results.parts.get(f"{name}/pretrain")
            frozen = results.parts.get(f"{name}/probe")
            if trained is None or frozen is None:
                continue
            own, random, pixels = [value for value in frozen.values() if isinstance(value, dict)]
            scratch = f"scratch-{trained['model.backbone']}"
            tuned = []
            for share, epochs in options.labels:
                parts = [f"finetune-{share:g}-{epochs}-{number}" for number in options.finetune_seeds]
                tuned.append(
                    against(*([results.parts[f"{source}/{part}"]["top1"] for part in parts]
                              for source in (name, scratch)))
                )  # fmt: skip
            yield [
                arm, str(trained["model.backbone"]), str(trained["schedule.epochs"]), str(seed),
                f"{trained['seconds']:.0f}",
                *(f"{own[k]:.1f} / {random[k]:.1f} / {pixels[k]:.1f}" for k in ("knn", "linear")),
                *tuned,
            ]  # fmt: skip


def robust_rows(results: Results, options: argparse.Namespace) -> Iterator[list[str]]:
    """A row for every arm and share whose robustness was measured."""
    for arm in options.methods:
        for seed in options.seeds:
            for share, epochs in options.labels:
                part = results.parts.get(f"{arm}-{seed}/robust-{share:g}-{epochs}")
                if part is None:
                    continue
                own, scratch = part["rows"]
                pgd = [f"{a:.1f} / {b:.1f}" for a, b in zip(own["pgd"], scratch["pgd"], strict=True)]
                difference = own["difference"]
                yield [
                    arm, str(seed), f"{share:.4g}", f"{own['clean']:.1f} / {scratch['clean']:.1f}",
                    f"{own['corrupted']:.1f} / {scratch['corrupted']:.1f} "
                    f"({difference['points']:+.1f} ± {difference['margin']:.1f})",
                    *("n/a" if own[name] is None else f"{own[name]:.1f}"
                      for name in ("mean_corruption_error", "relative_corruption_error")),
                    ", ".join(pgd) or "–",
                ]  # fmt: skip


def labels(text: str) -> tuple[float, int | None]:
    """SHARE or SHARE:EPOCHS."""
    share, _, epochs = text.partition(":")
    return float(share), int(epochs) if epochs else None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=(*METHODS, *VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=0, help="images to pre-train on; 0: all")
    parser.add_argument("--labelled", type=int, help="images to fine-tune on; 0: all; else as many")
    parser.add_argument("--probed", type=int, help="images to probe with; 0: all; else as --labelled")
    parser.add_argument("--test", type=int, default=0, help="test images; 0: all")
    parser.add_argument("--epochs", type=int, default=None, help="by default the recipe's")
    parser.add_argument("--batch-size", type=int, default=None, help="by default the recipe's")
    parser.add_argument("--labels", type=labels, nargs="*", default=[(1.0, None)], metavar="SHARE[:EPOCHS]")
    parser.add_argument("--finetune-seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--finetune-batch-size", type=int, default=None)
    parser.add_argument("--robust", action="store_true", help="fine-tuned classifiers on corrupted images")
    parser.add_argument("--robust-limit", type=int, default=500, help="test images for that")
    parser.add_argument("--attacks", action="store_true", help="FGSM and PGD as well")
    parser.add_argument("--set", action="append", default=[], help="a setting of every pre-training")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=None, help="processes that read images")
    options = parser.parse_args()
    options.labelled = options.images if options.labelled is None else options.labelled
    options.probed = options.labelled if options.probed is None else options.probed
    return options


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = (options.images, options.labelled, options.probed)
    pool, labelled, reference = (table_of_images(options.data, options.out, n, options.test) for n in wanted)
    images, results = list_of_images(pool), Results(options.out / "results.jsonl")
    for arm in options.methods:
        for seed in options.seeds:
            name, run = f"{arm}-{seed}", options.out / f"{arm}-{seed}"
            results.once(f"{name}/pretrain", partial(pretrained, run, arm, images, seed, options))
            results.once(f"{name}/probe", partial(probed, run, reference, options))
            scratch = f"scratch-{results.parts[f'{name}/pretrain']['model.backbone']}"
            for share, epochs in options.labels:
                for number in options.finetune_seeds:
                    for source, random in ((name, False), (scratch, True)):
                        work = partial(finetuned, run, labelled, share, epochs, number, options, random)
                        results.once(f"{source}/finetune-{share:g}-{epochs}-{number}", work)
                if options.robust:
                    own, others = (
                        [options.out / results.parts[f"{source}/finetune-{share:g}-{epochs}-{n}"]["folder"]
                         for n in options.finetune_seeds]
                        for source in (name, scratch)
                    )  # fmt: skip
                    results.once(f"{name}/robust-{share:g}-{epochs}", partial(robust, own, others, options))
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    print(f"\nsslkit {sslkit.__version__}, torch {torch.__version__}, {place}, {time.strftime('%Y-%m-%d')}")
    print(
        "kNN and linear: own / random weights / raw pixels; fine-tuned: own / scratch (difference); percent"
    )
    shares = [f"fine-tuned on {share:.4g} of the labels" for share, _ in options.labels]
    print(" | ".join(["method", "backbone", "epochs", "seed", "seconds", "kNN", "linear", *shares]))
    print(" | ".join(["---"] * (7 + len(shares))))
    for row in rows(results, options):
        print(" | ".join(row))
    if options.robust:
        print("\nfine-tuned: own / scratch, accuracy in %; mCE relative to scratch")
        print("method | seed | labels | clean | corrupted | mCE | relative mCE | PGD 0.25/255, 1/255")
        for row in robust_rows(results, options):
            print(" | ".join(row))


if __name__ == "__main__":
    main()
