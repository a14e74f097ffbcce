"""Frequency work: the published formulas, spelled out, against sslkit.frequency, both in one run.

    python benchmarks/frequency.py                              # 32 × 3 × 224², radius 16, float32
    python benchmarks/frequency.py --sizes 32 96 224 --batches 1 8 32
    python benchmarks/frequency.py --device cuda --batches 256
    python benchmarks/frequency.py --memory                     # peak extra memory, Linux only

Medians of interleaved repeats after a warm-up. The published side uses four full complex FFTs, shifts, and
a mask per image; it was written from the formulas, not from anyone's code.
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

import torch
from torch import Tensor

from sslkit.frequency import corrupt, disc, full_mask, masked_spectral_loss

RADIUS = 16


def published_masks(keep_low: Tensor, size: int) -> Tensor:
    """One centred integer mask [B, N, N] per image, as a loader worker would send them."""
    low = full_mask(disc(size, size, RADIUS), size).long().to(keep_low.device)
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


def medians(calls: list[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Milliseconds of each call; the calls take turns, so that a busy machine hurts all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 2):
        for call, record in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat >= 2:
                record.append(1000 * (time.perf_counter() - start))
    return [statistics.median(record) for record in times]


def batch(count: int, size: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=generator).to(device)
    prediction = torch.randn(count, 3, size, size, generator=generator).to(device).requires_grad_()
    target = torch.randn(count, 3, size, size, generator=generator).to(device)
    keep_low = (torch.arange(count) % 2 == 0).to(device)
    return images, prediction, target, keep_low, published_masks(keep_low, size)


def compare(count: int, size: int, repeats: int, device: str) -> None:
    images, prediction, target, keep_low, masks = batch(count, size, device)

    def gradient(loss: Callable[[], Tensor]) -> Tensor:
        return torch.autograd.grad(loss(), prediction)[0]

    def ours() -> Tensor:
        return masked_spectral_loss(prediction, target, keep_low, RADIUS)

    def published() -> Tensor:
        return published_loss(prediction, target, masks)

    copy, slow, fast, slow_loss, fast_loss = medians(
        [
            images.clone,
            lambda: published_corrupt(images, masks),
            lambda: corrupt(images, keep_low, RADIUS),
            lambda: gradient(published),
            lambda: gradient(ours),
        ],
        repeats,
        device,
    )
    pixels = (published_corrupt(images, masks) - corrupt(images, keep_low, RADIUS)).abs().max()
    loss = (ours() / published() - 1).abs()
    expected = gradient(published)
    slope = (gradient(ours) - expected).norm() / expected.norm()
    print(f"{count} × 3 × {size}²: a copy takes {copy:.2f} ms")
    row("corrupt", slow, fast, f"largest difference {pixels:.1e}")
    row("loss + gradient", slow_loss, fast_loss, f"relative {loss:.1e}, gradient {slope:.1e}")


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
        corrupt(images, keep_low, RADIUS)
        masked_spectral_loss(prediction, target, keep_low, RADIUS).backward()  # type: ignore[no-untyped-call]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{side:>16}  {(peak - before) * 1024 / (images.numel() * 4):.1f} × the batch's bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[224])
    parser.add_argument("--batches", type=int, nargs="+", default=[32])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", nargs="?", const="both", choices=["both", "published", "sslkit"])
    arguments = parser.parse_args()
    count, size = arguments.batches[-1], arguments.sizes[-1]
    if arguments.memory in ("published", "sslkit"):
        return extra_memory(arguments.memory, count, size)
    name = torch.cuda.get_device_name() if arguments.device != "cpu" else platform.machine()
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads, radius {RADIUS}")
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
