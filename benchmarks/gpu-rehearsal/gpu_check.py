# mypy: ignore-errors
"""The whole GPU path on a real GPU: one line a check, the most valuable first, until the time is spent.

    python gpu_check.py --repository . --budget 460 --out gpu-check-out
    python gpu_check.py --rehearse --budget 300     # the script itself: tiny, without a GPU, no number judged

gpu_check.sh calls it. Beside the results, tracebacks.txt is of checks that failed, cli.log of the commands.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGAN = time.monotonic()

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--repository", type=Path, default=Path(), help="for benchmarks/ (the current folder)")
parser.add_argument("--budget", type=float, default=460, help="seconds (460)")
parser.add_argument("--out", type=Path, default=Path("gpu-check-out"))
parser.add_argument("--only", default="", metavar="REGEX", help="checks whose name matches")
parser.add_argument("--rehearse", action="store_true", help="tiny, on a CUDA device that computes nothing")
WORDS = parser.parse_args()
REHEARSED = WORDS.rehearse

if REHEARSED:
    os.environ["GPU_REHEARSAL_QUIET"] = "1"
    import rehearsal  # before torch

import torch  # noqa: E402

if REHEARSED:
    import patches

    patches.results_that_matter()

CUDA = torch.device("cuda")
SIDE, BATCH, STEPS = (64, 8, 4) if REHEARSED else (224, 256, 20)
VIT, CNN = ("vit_tiny_patch16_224", "resnet18") if REHEARSED else ("vit_small_patch16_224", "resnet50")
ON_VIT = ("mfm", "mae", "simmim", "simclr", "moco", "byol", "dino")
ON_CNN = ("mfm", "simclr", "moco", "byol", "dino")
REPOSITORY, OUT = WORDS.repository.resolve(), WORDS.out.resolve()
WORK = OUT / "work"
SSLKIT = [str(HERE / "cli.py")] if REHEARSED else ["-m", "sslkit"]


@dataclass(frozen=True)
class Check:
    name: str
    seconds: float  # that it may take on an H200, estimated
    run: Callable[[], str]  # what to report; whatever it raises is a failure


CHECKS: list[Check] = []


def check(name: str, seconds: float) -> Callable[[Callable[[], str]], Callable[[], str]]:
    def added(run: Callable[[], str]) -> Callable[[], str]:
        CHECKS.append(Check(name, seconds, run))
        return run

    return added


def left() -> float:
    return WORDS.budget - (time.monotonic() - BEGAN)


def say(line: str) -> None:
    print(line, flush=True)
    with (OUT / "gpu_check.txt").open("a") as file:
        file.write(line + "\n")


def run(words: list[Any], limit: float = 200) -> str:
    """Standard output of a Python program; raises when its exit status is not 0."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(5, min(limit, left())))
    with (OUT / "cli.log").open("a") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n")
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"exit status {done.returncode}: {' '.join(last)[:200]}")
    return done.stdout


def sslkit(*words: Any) -> str:
    return run([*SSLKIT, *words])


def pictures(count: int, folder: Path) -> Path:
    """Images of noise, 64 px."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        noise = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:05d}.png", compress_level=1)
    return folder


def stepping(name: str, backbone: str, batch_size: int, steps: int) -> Iterator[Any]:
    """Steps of the real training loop, one as each is asked for, on a pinned batch of noise."""
    from sslkit.core.config.build import build_pretrain
    from sslkit.methods import card
    from sslkit.methods.base import Clock
    from sslkit.training.loop.engine import train
    from sslkit.training.loop.optim import pretraining
    from sslkit.training.pretrain.auto import resolve
    from sslkit.training.run.folder import build_method

    known, images = card(name), 100_000
    values = {
        **known.facts["defaults"],
        "data.sources": ["fractal:16"],
        "data.size": SIDE,
        "model.backbone": backbone,
        "run.batch_size": batch_size,
        "run.device": "cuda",
        "run.out": "nowhere",
        "schedule.epochs": 10,
    }
    ready = resolve(build_pretrain(known.name, known.Config, values), images, 256, CUDA)
    method = build_method(ready.config, ready.info).train().to(CUDA)
    an_epoch = images // batch_size
    clock = Clock(2 * an_epoch, 10 * an_epoch, an_epoch, 0)
    optimizer, schedule = pretraining(method, ready.config, clock)
    generator = torch.Generator().manual_seed(0)
    batch = {
        view: torch.randint(
            0, 256, (batch_size, 3, shape.size, shape.size), dtype=torch.uint8, generator=generator
        ).pin_memory()
        for view, shape in method.transform().views.items()
    }
    batch["index"] = torch.arange(batch_size).pin_memory()
    return train(
        method,
        (dict(batch) for _ in range(steps)),
        optimizer,
        schedule,
        (clock.at(clock.step + i) for i in range(steps)),
        device=CUDA,
        precision=ready.config.run.precision,
        clip=ready.config.optim.clip,
        clip_by=ready.config.optim.clip_by,
    )


def waits(steps: Iterator[Any], count: int) -> collections.Counter[str]:
    """What torch's own sync debug mode warns of in the next `count` steps, by source line."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(count):
                next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return collections.Counter(f"{Path(one.filename).name}:{one.lineno}" for one in seen)


def milliseconds(function: Callable[[], object], repeats: int, warm: int) -> float:
    for _ in range(warm):
        function()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began) / repeats


@check("environment", 3)
def _environment() -> str:
    facts = {
        "GPU": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "GiB": round(torch.cuda.mem_get_info()[1] / 2**30),
        "torch": torch.__version__,
        "cuDNN": torch.backends.cudnn.version(),
        "cores": len(os.sched_getaffinity(0)),
        "TF32 in products": torch.backends.cuda.matmul.allow_tf32,
        "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
    }
    return ", ".join(f"{name} {value}" for name, value in facts.items())


@check("numbers: draws, crops, corruption, loss and photometry equal the CPU's", 10)
def _numbers() -> str:
    from sslkit.augmentations.batch_crops import crop_resize_batch
    from sslkit.augmentations.photometric import Photometry
    from sslkit.core import rng
    from sslkit.frequency import corrupt, masked_spectral_loss, strongest

    limits = {"uniform": 0.0, "normal": 1e-5, "crops": 0.0, "photometry": 1e-4}
    limits |= {"corrupt": 1e-5, "loss": 1e-5, "gradient": 1e-4}
    off: dict[str, float] = dict.fromkeys(limits, 0.0)

    def compare(what: str, there: torch.Tensor, here: torch.Tensor) -> None:
        """The largest difference, of gradients the relative error of the whole."""
        difference = there.detach().cpu().double() - here.detach().double()
        error = difference.norm() / here.norm() if what == "gradient" else difference.abs().max()
        off[what] = max(off[what], float(error)) if error == error else float("nan")

    index = torch.arange(512)
    compare("uniform", rng.uniform(3, 2, index.to(CUDA), "a"), rng.uniform(3, 2, index, "a"))
    normals = [rng.normal(3, 2, where, (3, 7, 7), "a") for where in (index.to(CUDA), index)]
    compare("normal", *normals)
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8, generator=generator)
    corners = torch.randint(0, 20, (16, 2), generator=generator)
    boxes = torch.cat([corners, torch.randint(9, 44, (16, 2), generator=generator)], dim=1)
    flips = torch.arange(16) % 2 == 0
    crops = [crop_resize_batch(where, boxes, flips, 48) for where in (photos.to(CUDA), photos)]
    compare("crops", *crops)
    images, targets = torch.rand(2, 8, 3, 96, 96, generator=generator)
    photometry = Photometry(solarize=0.2)
    jittered = [photometry(images.to(d), index[:8].to(d), 0, 0, "view") for d in (CUDA, "cpu")]
    compare("photometry", *jittered)

    keep = torch.arange(8) % 2 == 0
    for cutoff in (6.86, torch.linspace(3, 9, 8), strongest(images, 0.0158)):
        there = cutoff.to(CUDA) if isinstance(cutoff, torch.Tensor) else cutoff
        corrupted = corrupt(images.to(CUDA), keep.to(CUDA), there)
        compare("corrupt", corrupted, corrupt(images.double(), keep, cutoff))
        on_gpu, on_cpu = images.to(CUDA).requires_grad_(), images.double().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            loss = masked_spectral_loss(on_gpu, targets.to(CUDA), keep.to(CUDA), there)
        right = masked_spectral_loss(on_cpu, targets.double(), keep, cutoff)
        loss.backward()
        right.backward()
        compare("loss", loss.cpu() / right.detach(), right / right.detach())
        compare("gradient", on_gpu.grad, on_cpu.grad)
    text = ", ".join(f"{what} {value:.1e}" for what, value in off.items())
    wrong = [what for what, value in off.items() if not value <= limits[what]]
    if wrong and not REHEARSED:
        raise RuntimeError(f"{', '.join(wrong)} differ: {text}")
    return text


def _steps(name: str, backbone: str) -> str:
    batch_size, warm = BATCH // 4 if name == "dino" else BATCH, 4
    torch.cuda.reset_peak_memory_stats()
    running = stepping(name, backbone, batch_size, warm + STEPS)
    steps = [next(running) for _ in range(warm)]
    torch.cuda.synchronize()
    began = time.perf_counter()
    steps += running
    host = (time.perf_counter() - began) / STEPS
    torch.cuda.synchronize()
    whole = (time.perf_counter() - began) / STEPS
    if not REHEARSED and not all(bool(step.finite) for step in steps):
        raise RuntimeError("a step was not finite")
    first, last = (float(step.metrics["loss"]) for step in (steps[0], steps[-1]))
    peak = torch.cuda.max_memory_allocated() / 2**30
    del running, steps
    again = stepping(name, backbone, min(batch_size, 32), 4)
    next(again), next(again)
    found = waits(again, 2)
    told = [
        f"{batch_size / whole:.0f} images/s",
        f"{whole * 1e3:.1f} ms a step ({host * 1e3:.1f} until the host is free)",
        f"loss {first:.4f} → {last:.4f}",
        f"peak {peak:.1f} GiB",
        f"{found.total()} waits in 2 steps {dict(found) or ''}",
    ]
    return ", ".join(told)


for _backbone, _names in ((VIT, ON_VIT), (CNN, ON_CNN)):
    for _name in _names:
        _seconds = 14 if _name == "dino" else 9
        check(f"{STEPS} steps of {_name} on {_backbone}", _seconds)(lambda n=_name, b=_backbone: _steps(n, b))


@check("run, kill -9, resume; the cache of images on the GPU", 45)
def _killed() -> str:
    folder, photos = WORK / "killed", pictures(64 if REHEARSED else 2048, WORK / "photos")
    words = ["pretrain", photos, "--device", "cuda", "--backbone", "resnet18", "--size", 64, "--epochs", 400]
    batch_size, every = (16, 8) if REHEARSED else (128, 60)
    words += ["--batch-size", batch_size, "--save-every", every, "--out", folder]
    checkpoints = folder / "checkpoints"
    with _started(words) as job:
        end = time.monotonic() + min(60, left())
        while time.monotonic() < end and not any(checkpoints.glob("step-????????")):
            time.sleep(0.2)
        time.sleep(1)
        job.kill()
        told = job.communicate()[0]
    saved = sorted(checkpoints.glob("step-????????"))
    if not saved:
        raise RuntimeError(f"no checkpoint: {told[-300:]}")
    with _started(["pretrain", "--resume", folder]) as job:
        time.sleep(12)
        job.send_signal(signal.SIGTERM)
        told = job.communicate(timeout=60)[0]
    resumed = re.search(r"resuming .* at step (\d+)", told)
    if resumed is None or job.returncode not in (0, 143):
        raise RuntimeError(f"exit status {job.returncode}: {told[-300:]}")
    cached = re.search(r"images stay decoded[^;\n]*", told)
    rates = re.findall(r"(\d+ images/s  waiting \d+%)", told)
    return (
        f"killed after {saved[-1].name}, resumed at {resumed[1]}, then exit status {job.returncode};"
        f" {cached[0][:60] if cached else 'not cached'}; {rates[-1] if rates else 'no rate yet'}"
    )


def _started(words: list[Any]) -> subprocess.Popen[str]:
    command = [sys.executable, *SSLKIT, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _bench(backbone: str, *more: str) -> str:
    size = ["--batch-size", 8, "--steps", 3] if REHEARSED else ["--batch-size", 256, "--steps", 9]
    data = ["fractal:600", "--device", "cuda", "--size", SIDE]
    told = sslkit("bench", *data, "--backbone", backbone, *size, *more, "--json")
    rates = json.loads(told.strip().splitlines()[-1])
    use = {side: round(100 * share) for side, share in rates.get("use", {}).items()}
    paces = ", ".join(f"{side} {rates[side]:.0f}/s" for side in ("loader", "bare", "model", "whole"))
    return f"{paces}, MFU {use} %, memory {rates['memory'] / 2**30:.1f} GiB"


for _backbone in (VIT, CNN) if REHEARSED else (VIT, "vit_base_patch16_224", CNN):
    check(f"bench {_backbone}", 35)(lambda b=_backbone: _bench(b))

if not REHEARSED:  # nothing can be compiled for no GPU
    check(f"bench --compile {VIT}", 75)(lambda: _bench(VIT, "--compile"))


def _benchmark(file: str, *more: str) -> str:
    told = run([REPOSITORY / "benchmarks" / file, "--device", "cuda", *more], limit=60)
    (OUT / f"{file}.txt").write_text(told)
    return " | ".join(told.strip().splitlines())[:700]


if not REHEARSED:  # a device that answers in no time has no median to divide by
    check("benchmarks/step.py", 30)(lambda: _benchmark("step.py", "--batch", "256"))
    check("benchmarks/frequency.py", 30)(lambda: _benchmark("frequency.py"))


@check("what small changes would give to MFM", 40)
def _changes() -> str:
    from timm.layers import set_fast_norm

    def pace(backbone: str, prepare: Callable[[], object] = lambda: None) -> str:
        steps = stepping("mfm", backbone, BATCH, 14)
        prepare()
        return f"{milliseconds(lambda: next(steps), repeats=10, warm=4):.1f} ms"

    told = [f"as it is {pace(VIT)} (ViT), {pace(CNN)} (CNN)"]
    torch.backends.cudnn.benchmark = True
    told.append(f"cudnn.benchmark {pace(CNN)} (CNN)")
    torch.backends.cudnn.benchmark = False
    # Set once the model is built: it has no kernel on meta, where sslkit looks at a model first.
    try:
        told.append(f"timm's fast norm {pace(VIT, lambda: set_fast_norm(True))} (ViT)")
    finally:
        set_fast_norm(False)
    matrix = torch.randn(512, 2048, device=CUDA)
    for where, one in (("GPU", matrix), ("CPU", matrix.cpu())):
        took = milliseconds(lambda one=one: torch.linalg.svdvals(one), repeats=3, warm=1)
        told.append(f"svdvals of 512 × 2048 on the {where} {took:.0f} ms")
    return "; ".join(told)


@check("memory runs out: halved in the run", 20)
def _memory() -> str:
    torch.cuda.empty_cache()
    share = (1.2 if REHEARSED else 6) * 2**30 / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        sizes = [step.micro_batch for step in stepping("mfm", VIT, 2048 if REHEARSED else 256, 3)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    if not any(sizes):
        raise RuntimeError("memory never ran out")
    return f"images at once, by step: {sizes}"


@check("probe, finetune, export, embed", 60)
def _afterwards() -> str:
    folder, data = WORK / "run", WORK / "labelled"
    for split in ("train", "validation"):
        for name in ("a", "b"):
            pictures(30, data / split / name)
    train = data / "train"
    small = ["--device", "cuda", "--batch-size", 16]
    model = ["--backbone", "vit_tiny_patch16_224", "--size", 64]
    sslkit("pretrain", train, *small, *model, "--epochs", 2, "--out", folder)
    sslkit("probe", folder, data, "--device", "cuda", "--robust", "--attacks", "--robust-limit", 30)
    sslkit("finetune", folder, data, *small, "--epochs", 1, "--out", WORK / "finetuned")
    sslkit("export", folder, WORK / "exported")
    sslkit("embed", folder, train, "--device", "cuda", "--out", WORK / "vectors.npz")
    return "all five end with 0"


KINDS = {  # of kernels, by name; the first that matches
    "attention": "flash|fmha|sdpa",
    "products": "gemm|nvjet|cutlass|xmma|cudnn|conv",
    "FFT": "fft|regular_",
    "copies and casts": "copy|memcpy",
    "norms": "norm",
    "optimizer": "multi_tensor",
    "elementwise and the rest": "",
}

if not REHEARSED:  # the profiler needs a driver

    @check("where the time of an MFM step goes", 12)  # last: nothing is lost if it takes the process with it
    def _profile() -> str:
        from torch.profiler import ProfilerActivity, profile

        steps = stepping("mfm", VIT, BATCH, 6)
        for _ in range(4):
            next(steps)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            next(steps), next(steps)
            torch.cuda.synchronize()
        events = profiler.events() or []
        shares: collections.Counter[str] = collections.Counter()
        for event in events:
            kind = next(k for k, pattern in KINDS.items() if re.search(pattern, event.name.lower()))
            shares[kind] += event.device_time_total
        total = shares.total() or 1
        told = ", ".join(f"{kind} {100 * part / total:.0f} %" for kind, part in shares.most_common())
        return f"{len(events) // 2} launches a step, {total / 2e3:.1f} ms: {told}"


def main() -> int:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    failed = []
    for one in CHECKS:
        if not re.search(WORDS.only, one.name):
            continue
        if left() < one.seconds:
            say(f"skipped  {one.name}: {left():.0f} s are left")
            continue
        began = time.monotonic()
        try:
            state, text = "ok", one.run()
        except Exception as problem:
            state, text = "FAILED", f"{type(problem).__name__}: {str(problem)[:300]}"
            failed.append(one.name)
            with (OUT / "tracebacks.txt").open("a") as file:
                file.write(f"{one.name}\n{traceback.format_exc()}\n")
        say(f"{state:8} {one.name} ({time.monotonic() - began:.0f} s): {text}")
        torch.cuda.empty_cache()
    say(f"{len(failed)} failed in {time.monotonic() - BEGAN:.0f} s: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    status = main()
    if REHEARSED:
        rehearsal.leave(status)
    sys.exit(status)
