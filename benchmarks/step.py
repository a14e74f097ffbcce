"""What frequency work costs inside MFM's whole training step, and how near the memory's speed it runs.

    python benchmarks/step.py                                   # ViT-S/16, 8 images of 224 px
    python benchmarks/step.py --device cuda --batch 256
    python benchmarks/step.py --device cuda --batch 256 --model vit_base_patch16_224

The step is the real one, bfloat16 autocast and optimizer included, without the loader. Frequency work is the
corruption, the normalised target, and the loss with its gradient in the prediction. Medians of interleaved
repeats. Bytes per second count what has to move at least: images in and out; prediction and target in,
gradient out. On a GPU also both sides of `frequency.py`, and the DFT as matrix products against cuFFT.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable
from typing import Any

import torch
from frequency import compare, medians
from torch import Tensor

from sslkit.core.config.sections import Optim
from sslkit.core.device import autocast
from sslkit.frequency import corrupt, masked_spectral_loss
from sslkit.methods import load
from sslkit.methods.base import Batch, Clock, Info, Method
from sslkit.models.encoder import Encoder
from sslkit.training.loop.optim import build_optimizer, parameter_groups

SIZE = 224
RADIUS = 16.0


def build(model: str, device: torch.device) -> tuple[Method, torch.optim.Optimizer]:
    torch.manual_seed(0)
    encoder, method_class = Encoder(model, SIZE), load("mfm")
    config: Any = method_class.Config(radius=RADIUS, low_share=0.5)
    method = method_class(config, encoder, Info(1000, SIZE, SIZE)).to(device)
    groups = parameter_groups(method, 0.05, method_class.overrides)
    return method, build_optimizer(groups, Optim(name="adamw", weight_decay=0.05, betas=(0.9, 0.95)), 1e-4)


def share_of_step(model: str, count: int, repeats: int, device: torch.device) -> None:
    method, optimizer = build(model, device)
    batch: Batch = {
        "index": torch.arange(count, device=device),
        "image": torch.rand(count, 3, SIZE, SIZE, device=device),
    }
    clock = Clock(0, 1000, 100)
    keep_low = torch.arange(count, device=device) % 2 == 0
    prediction = torch.randn(count, 3, SIZE, SIZE, device=device, dtype=torch.bfloat16).requires_grad_()
    target = method.encoder.normalize(batch["image"])

    def step() -> None:
        with autocast(device, "bfloat16"):
            loss = method(method.coloured(batch, clock), clock)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def corruption() -> Tensor:
        return corrupt(batch["image"], keep_low, RADIUS)

    def loss(target: Tensor = target) -> Tensor:
        return torch.autograd.grad(masked_spectral_loss(prediction, target, keep_low, RADIUS), prediction)[0]

    def frequency_work() -> None:
        with autocast(device, "bfloat16"):
            corruption()
            loss(method.encoder.normalize(batch["image"]))

    calls: list[Callable[[], object]] = [step, frequency_work, batch["image"].clone, corruption, loss]
    whole, part, *rest = medians(calls, repeats, device.type)
    print(
        f"{model}, {count} × 3 × {SIZE}², bfloat16: step {whole:.1f} ms, {1000 * count / whole:.1f} images/s"
    )
    print(f"frequency work {part:.1f} ms, {part / whole:.1%} of the step")
    size = batch["image"].numel()
    least = (8 * size, 8 * size, (2 + 4 + 2) * size)  # bytes: float32 in and out; bfloat16, float32, bfloat16
    fastest = least[0] / rest[0]
    for name, milliseconds, amount in zip(("copy", "corrupt", "loss"), rest, least, strict=True):
        speed = amount / milliseconds
        line = f"{name:>16}  {milliseconds:8.2f} ms  {speed / 1e6:8.1f} GB/s"
        print(f"{line}  {speed / fastest:.0%} of a copy's")


def dft_products(count: int, repeats: int, device: torch.device) -> None:
    """`rfft2` as two dense real products, in float32, TF32, and TF32 with split operands."""
    images = torch.rand(3 * count, SIZE, SIZE, device=device)
    exact = torch.fft.rfft2(images[:8].double())
    before = torch.get_float32_matmul_precision()
    [fft] = medians([lambda: torch.fft.rfft2(images)], repeats, device.type)
    print(f"{'rfft2':>16}  {fft:8.2f} ms  relative error {error(torch.fft.rfft2(images[:8]), exact):.1e}")
    for name, precision, split in (
        ("float32", "highest", False),
        ("TF32", "high", False),
        ("3 × TF32", "high", True),
    ):
        torch.set_float32_matmul_precision(precision)
        try:
            transform = dense_dft(SIZE, device, split)
            [time] = medians([lambda transform=transform: transform(images)], repeats, device.type)  # type: ignore[misc]
            off = error(transform(images[:8]), exact)
        finally:
            torch.set_float32_matmul_precision(before)
        print(f"{name:>16}  {time:8.2f} ms  relative error {off:.1e}  rfft2 / this {fft / time:.2f}")


def dense_dft(size: int, device: torch.device, split: bool) -> Callable[[Tensor], Tensor]:
    """[N, H, W] → complex half spectrum: [cos | -sin] on the right, [[C, S], [-S, C]] on the left."""
    wave = torch.arange(size, dtype=torch.float64)
    angle = 2 * math.pi * (wave[:, None] * wave % size) / size
    half = angle[:, : size // 2 + 1]
    columns = torch.cat([half.cos(), -half.sin()], 1).float().to(device)
    rows = torch.cat([torch.cat([angle.cos(), angle.sin()], 1), torch.cat([-angle.sin(), angle.cos()], 1)])
    rows = rows.float().to(device)
    multiply = split_product if split else torch.matmul

    def transform(images: Tensor) -> Tensor:
        real, imaginary = multiply(images, columns).chunk(2, -1)  # [N, H, K] each
        both = multiply(rows, torch.cat([real, imaginary], 1))  # [N, 2 H, K]
        return torch.complex(*both.chunk(2, 1))

    return transform


def split_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right with both cut into TF32's 10 bits and the rest; rest times rest is left out."""
    (a, b), (c, d) = halves(left), halves(right)
    return torch.cat([a, a, b], -1) @ torch.cat([c, d, c], -2)


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    high = (values.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
    return high, values - high


def error(got: Tensor, exact: Tensor) -> float:
    return float((got - exact).abs().norm() / exact.abs().norm())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads, radius {RADIUS:.0f}")
    share_of_step(arguments.model, arguments.batch, arguments.repeats, device)
    if device.type == "cuda":
        compare(arguments.batch, SIZE, arguments.repeats, arguments.device)
        dft_products(arguments.batch, arguments.repeats, device)


if __name__ == "__main__":
    main()
