"""Frequency work: the published formulas, spelled out, against sslkit.frequency, both in one run.

    python benchmarks/frequency.py                              # 32 × 3 × 224², radius 16, float32
    python benchmarks/frequency.py --sizes 32 96 224 --batches 1 8 32
    python benchmarks/frequency.py --device cuda --batches 256
    python benchmarks/frequency.py --memory                     # peak extra memory, Linux only
    python benchmarks/frequency.py --plot scaling.png           # growth over sizes 32 … 512, batches 1 … 256

Medians of interleaved repeats after a warm-up. The radius is MFM's, 16 bins at 224 px and in proportion
elsewhere. The published side uses four full complex FFTs, shifts, and a mask per image; it was written from
the formulas, not from anyone's code.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sslkit.frequency import corrupt, disc, full_mask, masked_spectral_loss

SIZES = [32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512]
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
SCALING_PIXELS = 16 * 224**2  # of each batch in the growth over sizes


class Times(NamedTuple):
    """Medians in milliseconds."""

    images: int
    size: int
    copy: float
    published_corrupt: float
    corrupt: float
    published_loss: float
    loss: float


def radius_at(size: int) -> float:
    return 16 * size / 224


def published_masks(keep_low: Tensor, size: int) -> Tensor:
    """One centred integer mask [B, N, N] per image, as a loader worker would send them."""
    low = full_mask(disc(size, size, radius_at(size)), size).long().to(keep_low.device)
    return torch.where(keep_low[:, None, None], low, 1 - low)


def published_corrupt(images: Tensor, masks: Tensor) -> Tensor:
    shifted = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1)) * masks[:, None]
    filtered: Tensor = torch.fft.ifft2(torch.fft.ifftshift(shifted, dim=(-2, -1))).real
    return filtered.clamp(0, 1)


def published_spectrum(images: Tensor) -> Tensor:
    spectrum = torch.fft.fftshift(torch.fft.fft2(images, norm="ortho"), dim=(-2, -1))
    return torch.stack([spectrum.real, spectrum.imag], -1)


def published_loss(prediction: Tensor, target: Tensor, masks: Tensor) -> Tensor:
    squared = (published_spectrum(prediction) - published_spectrum(target)) ** 2
    distance = torch.sqrt(squared[..., 0] + squared[..., 1] + 1e-12)
    scored = (1 - masks)[:, None]
    return (distance * scored).sum() / (scored.sum() * prediction.shape[1])


def medians(
    calls: list[Callable[[], object]],
    repeats: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Milliseconds of each call; the calls take turns, so that a busy machine hurts all alike.

    clock: `time.process_time` for calls of one thread, which then feel other programs' work hardly at all.
    """
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 2):
        for call, record in zip(calls, times, strict=True):
            start = clock()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat >= 2:
                record.append(1000 * (clock() - start))
    return [statistics.median(record) for record in times]


def batch(count: int, size: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=generator).to(device)
    prediction = torch.randn(count, 3, size, size, generator=generator).to(device).requires_grad_()
    target = torch.randn(count, 3, size, size, generator=generator).to(device)
    keep_low = (torch.arange(count) % 2 == 0).to(device)
    return images, prediction, target, keep_low, published_masks(keep_low, size)


def measure(count: int, size: int, repeats: int, device: str) -> Times:
    images, prediction, target, keep_low, masks = batch(count, size, device)
    radius = radius_at(size)
    calls: list[Callable[[], object]] = [
        images.clone,
        lambda: published_corrupt(images, masks),
        lambda: corrupt(images, keep_low, radius),
        lambda: torch.autograd.grad(published_loss(prediction, target, masks), prediction),
        lambda: torch.autograd.grad(masked_spectral_loss(prediction, target, keep_low, radius), prediction),
    ]
    return Times(count, size, *medians(calls, repeats, device))


def differences(count: int, size: int, device: str) -> tuple[str, str]:
    """How far both sides' results are apart: corruption, and loss with gradient."""
    images, prediction, target, keep_low, masks = batch(count, size, device)
    pixels = (published_corrupt(images, masks) - corrupt(images, keep_low, radius_at(size))).abs().max()
    ours = masked_spectral_loss(prediction, target, keep_low, radius_at(size))
    published = published_loss(prediction, target, masks)
    got, expected = (torch.autograd.grad(loss, prediction)[0] for loss in (ours, published))
    slope = (got - expected).norm() / expected.norm()
    return (
        f"largest difference {pixels:.1e}",
        f"relative {(ours / published - 1).abs():.1e}, gradient {slope:.1e}",
    )


def compare(count: int, size: int, repeats: int, device: str) -> None:
    times, (pixels, slope) = measure(count, size, repeats, device), differences(count, size, device)
    print(f"{count} × 3 × {size}², radius {radius_at(size):.2f}: a copy takes {times.copy:.2f} ms")
    row("corrupt", times.published_corrupt, times.corrupt, pixels)
    row("loss + gradient", times.published_loss, times.loss, slope)


def row(name: str, published: float, ours: float, difference: str) -> None:
    times = f"published {published:8.2f} ms  sslkit {ours:8.2f} ms  {published / ours:5.1f} ×"
    print(f"{name:>16}  {times}  {difference}")


def extra_memory(side: str, count: int, size: int) -> None:
    """Print how much the process's peak grows by one corruption and one loss with gradient, in batches."""
    images, prediction, target, keep_low, masks = batch(count, size, "cpu")
    one = 2 * torch.rand(1, 3, 8, 8)  # the FFT's and the BLAS's own start-up
    published_corrupt(one, published_masks(torch.tensor([True]), 8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if side == "published":
        published_corrupt(images, masks)
        published_loss(prediction, target, masks).backward()  # type: ignore[no-untyped-call]
    else:
        corrupt(images, keep_low, radius_at(size))
        masked_spectral_loss(prediction, target, keep_low, radius_at(size)).backward()  # type: ignore[no-untyped-call]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{side:>16}  {(peak - before) * 1024 / (images.numel() * 4):.1f} × the batch's bytes")


def scaling(path: Path, repeats: int, device: str) -> None:
    """Tables in Markdown of the growth over sizes and over batches, and one picture of both."""
    sizes = [measure(max(1, SCALING_PIXELS // size**2), size, repeats, device) for size in SIZES]
    table("size", [times.size for times in sizes], sizes)
    batches = [measure(count, 96, repeats, device) for count in BATCHES]
    table("batch", [times.images for times in batches], batches)
    draw(path, sizes, batches)


def table(name: str, keys: list[int], rows: list[Times]) -> None:
    print(f"\n| {name} | images | copy | corruption | published | ratio | loss | published | ratio |")
    print("| --- " * 9 + "|")
    for key, times in zip(keys, rows, strict=True):
        scale = 1e6 / (times.images * times.size**2 * 3)  # milliseconds → nanoseconds per value
        cells = [f"{key}", f"{times.images}", f"{times.copy * scale:.2f}"]
        for ours, published in (
            (times.corrupt, times.published_corrupt),
            (times.loss, times.published_loss),
        ):
            cells += [f"{ours * scale:.2f}", f"{published * scale:.1f}", f"{published / ours:.1f}"]
        print("| " + " | ".join(cells) + " |")


def draw(path: Path, sizes: list[Times], batches: list[Times]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    lines = {
        "published loss + gradient": ("published_loss", "#c2410c", "o--"),
        "published corruption": ("published_corrupt", "#f59e0b", "s--"),
        "sslkit loss + gradient": ("loss", "#1d4ed8", "o-"),
        "sslkit corruption": ("corrupt", "#38bdf8", "s-"),
        "copy": ("copy", "#9ca3af", "-"),
    }
    for label, (field, colour, style) in lines.items():
        per_image = [getattr(times, field) / times.images for times in sizes]
        left.plot([t.size for t in sizes], per_image, style, color=colour, label=label, markersize=4)
        whole = [getattr(times, field) for times in batches]
        right.plot([t.images for t in batches], whole, style, color=colour, label=label, markersize=4)
    left.set(xlabel="size, pixels", ylabel="milliseconds per image", title="Growth with the size")
    right.set(
        xlabel="images in the batch", ylabel="milliseconds per batch", title="… and with the batch, 96 px"
    )
    for axes, ticks in ((left, [32, 64, 96, 128, 224, 384, 512]), (right, BATCHES)):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[224])
    parser.add_argument("--batches", type=int, nargs="+", default=[32])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="measure the growth and draw it")
    parser.add_argument("--memory", nargs="?", const="both", choices=["both", "published", "sslkit"])
    arguments = parser.parse_args()
    count, size = arguments.batches[-1], arguments.sizes[-1]
    if arguments.memory in ("published", "sslkit"):
        return extra_memory(arguments.memory, count, size)
    name = torch.cuda.get_device_name() if arguments.device != "cpu" else platform.machine()
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads")
    if arguments.plot:
        return scaling(arguments.plot, arguments.repeats, arguments.device)
    if arguments.memory:  # a peak belongs to a process: one for each side
        for side in ("published", "sslkit"):
            options = ["--memory", side, "--batches", str(count), "--sizes", str(size)]
            subprocess.run([sys.executable, __file__, *options], check=True)
        return None
    for size in arguments.sizes:
        for count in arguments.batches:
            compare(count, size, arguments.repeats, arguments.device)


if __name__ == "__main__":
    main()
