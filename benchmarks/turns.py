"""Two ways to make the same step on a CPU, in turns: each in a process of its own, a few steps at a time.

    python benchmarks/turns.py allocator --backbone resnet50 --size 96
    python benchmarks/turns.py allocator --backbone vit_tiny_patch16_224 --size 96 --precision float32
    python benchmarks/turns.py depthwise --backbone tf_efficientnet_lite0 --size 128 --batch 32
    python benchmarks/turns.py precision --backbone convnext_tiny --size 96 --batch 32

Prints, for each side, the median time of a step (the engine's whole one on a batch in memory: loss, gradient,
optimizer), page faults a step and the peak of resident memory, and the ratio of the two sides over the turns.
A busy machine slows both, so only ratios count, those of the processor's time before those of the clock's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import IO, Any

SIDES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "allocator": ({"keep": False}, {"keep": True}),
    "depthwise": ({"fast": False}, {"fast": True}),
    "precision": ({"precision": "float32"}, {"precision": "bfloat16"}),
}
"""What is compared: the options of the older and the newer side."""


def side(options: dict[str, Any]) -> None:
    """One side: makes steps as the other process asks for them, a line in and a line out."""
    from sslkit.core import allocator

    if options["keep"]:
        assert allocator.keep_memory(), "no glibc here, or it has settings of its own"

    import torch

    from sslkit.core.config.build import build_pretrain
    from sslkit.methods import card
    from sslkit.training.loop import acceleration
    from sslkit.training.loop.throughput import ThroughputBench
    from sslkit.training.pretrain.bench import prepare_job

    torch.set_num_threads(options["threads"])
    if not options["fast"]:  # torch's own gradients of depthwise convolutions
        setattr(acceleration, "take_fast_gradients_", lambda network: 0)  # noqa: B010
    known = card(options["method"])
    values = {
        **known.facts["defaults"],
        "data.sources": [f"fractal:{max(64, options['batch'])}"],
        "data.size": options["size"],
        "data.workers": 0,
        "model.backbone": options["backbone"],
        "run.batch_size": options["batch"],
        "run.device": "cpu",
        "run.precision": options["precision"],
    }
    from sslkit.core.console import Console

    console = Console(quiet=True)
    job = prepare_job(build_pretrain(options["method"], known.Config, values), console)
    bench = ThroughputBench(job, console)
    bench.model(1, warm=2)
    print("ready", flush=True)
    for line in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF)
        seconds = bench.model(int(line)).seconds
        after = resource.getrusage(resource.RUSAGE_SELF)
        figures = {
            "seconds": seconds,
            "cpu": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / int(line),
            "faults": (after.ru_minflt - before.ru_minflt) / int(line),
            "system": (after.ru_stime - before.ru_stime) / int(line),
            "memory": after.ru_maxrss / 1024,
        }
        print(json.dumps(figures), flush=True)


def started(options: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "side", "--options", json.dumps(options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in pipe(process.stdout):
        if line == "ready\n":
            return process
    raise SystemExit("a side ended before its first step")


def pipe(end: IO[str] | None) -> IO[str]:
    assert end is not None
    return end


def turn(process: subprocess.Popen[str], steps: int) -> dict[str, float]:
    """Some steps of one side."""
    pipe(process.stdin).write(f"{steps}\n")
    pipe(process.stdin).flush()
    figures: dict[str, float] = json.loads(pipe(process.stdout).readline())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=[*SIDES, "side"])
    parser.add_argument("--method", default="mfm")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=8, help="2 at least")
    parser.add_argument("--steps", type=int, default=2, help="a turn")
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what == "side":
        side(given.options)
        return
    common = {
        name: getattr(given, name) for name in ("method", "backbone", "size", "batch", "precision", "threads")
    }
    usual = {"keep": True, "fast": True}
    processes = [started({**usual, **common, **options}) for options in SIDES[given.what]]
    found: list[list[dict[str, float]]] = [[], []]
    for _ in range(given.turns):
        for figures, process in zip(found, processes, strict=True):
            figures.append(turn(process, given.steps))
    for process in processes:
        pipe(process.stdin).close()
        process.wait()
    print(f"{time.strftime('%Y-%m-%d')}  {' '.join(map(str, common.values()))}")
    for options, figures in zip(SIDES[given.what], found, strict=True):
        medians = {name: statistics.median(one[name] for one in figures) for name in figures[0]}
        print(
            f"  {options}: {1000 * medians['seconds']:.0f} ms a step, {1000 * medians['cpu']:.0f} ms of the "
            f"processor, {1000 * medians['system']:.0f} of it in the kernel, {medians['faults']:,.0f} page "
            f"faults, {max(one['memory'] for one in figures):,.0f} MB"
        )
    for name, label in (("cpu", "processor"), ("seconds", "clock")):
        ratios = [older[name] / newer[name] for older, newer in zip(*found, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"  ratio by the {label} {middle:.2f} (half of the turns: {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
