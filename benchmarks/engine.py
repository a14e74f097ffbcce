"""The whole training step of MFM against the bare backbone's: what does the method cost beside it?

    python benchmarks/engine.py                                   # ViT-Ti/16 and ResNet-50, 224 px, CPU
    OMP_NUM_THREADS=1 python benchmarks/engine.py --batch 8       # CPU time: a busy machine hardly matters
    python benchmarks/engine.py --models vit_small_patch16_224 --batch 256 --device cuda

Bare: forward, the mean of the features as loss, backward, optimizer. Whole: `engine.train` with a batch in
memory: uint8 to float, corruption, forward, decoder, spectral loss, backward, clipping, the check for finite
gradients, optimizer, after_step. In between: what the whole step adds, part by part. Same backbone, optimizer
and precision; one step of each in turn, medians: of CPU time where one thread works on the CPU, else of time.
"""

from __future__ import annotations

import argparse
import platform
import time
from typing import Any

import torch
from frequency import medians

from sslkit.core.config.sections import Optim
from sslkit.core.device import Precision, autocast, pick_device, pick_precision, to_device
from sslkit.frequency import corrupt, masked_spectral_loss
from sslkit.methods import load
from sslkit.methods.base import Clock, Info
from sslkit.models.encoder import Encoder
from sslkit.training.loop.engine import train
from sslkit.training.loop.optim import CosineSchedule, build_optimizer, clip_gradients_, parameter_groups

OPTIM = Optim(name="adamw", weight_decay=0.05, betas=(0.9, 0.95))
CLIP = 3.0


def compare(
    name: str, count: int, size: int, repeats: int, device: torch.device, precision: Precision
) -> None:
    bare, method = Encoder(name, size).to(device).train(), mfm(name, size).to(device)
    optimizer = build_optimizer(parameter_groups(bare, 0.05, {}), OPTIM, 1e-6)
    images = torch.rand(count, 3, size, size, device=device)
    index = torch.arange(count)
    batch = {"image": (images * 255).byte().cpu(), "index": index}
    own = build_optimizer(parameter_groups(method, 0.05, method.overrides), OPTIM, 1e-6)
    schedule = CosineSchedule(own, 10**6, 0, 0.0, 0.0)
    clocks = Clock(0, 10**6, 1000).rest()
    steps = train(
        method,
        iter(lambda: batch, None),
        own,
        schedule,
        clocks,
        device=device,
        precision=precision,
        clip=CLIP,
    )

    def bare_step() -> None:
        with autocast(device, precision):
            loss = bare.vector(images).float().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    radius = float(method.config.radius)
    keep_low = (index % 2 == 0).to(device)
    prediction = torch.rand_like(images).requires_grad_()
    gradients = [torch.nn.Parameter(torch.rand_like(p)) for p in method.parameters()]
    for parameter in gradients:
        parameter.grad = torch.rand_like(parameter)

    def scored() -> None:
        masked_spectral_loss(prediction, images, keep_low, radius).backward()  # type: ignore[no-untyped-call]
        prediction.grad = None

    side = size // bare.stride
    cells = torch.rand(count, bare.width, side, side, device=device)
    cells = cells.to(memory_format=torch.channels_last).requires_grad_()

    def decoded() -> None:
        with autocast(device, precision):
            pixels = method.head(cells)
        pixels.backward(prediction.detach().to(pixels.dtype))
        cells.grad = None
        method.head.zero_grad()

    parts = {
        "uint8 to float": lambda: to_device(batch, device),
        "corruption": lambda: corrupt(images, keep_low, radius),
        "decoder": decoded,
        "loss + gradient": scored,
        "clipping": lambda: clip_gradients_(gradients, CLIP),
    }
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    times = medians([bare_step, lambda: next(steps), *parts.values()], repeats, device.type, clock)
    print(f"{name}, {count} × {size} px: bare {rate(count, times[0])}, whole {rate(count, times[1])}")
    print(f"    whole / bare {times[0] / times[1]:6.1%} of the rate")
    for part, spent in zip(parts, times[2:], strict=True):
        print(f"    {part:<18} {spent:7.1f} ms {spent / times[0]:6.1%} of the bare step")


def mfm(name: str, size: int) -> Any:
    kind = load("mfm")
    encoder, info = Encoder(name, size), Info(1000, size, size)
    chosen = {key: value for key, (value, _) in kind.resolve(kind.Config(), encoder.family, info).items()}
    return kind(kind.Config(**chosen), encoder, info)


def rate(count: int, milliseconds: float) -> str:
    return f"{1000 * count / milliseconds:.1f} images/s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["vit_tiny_patch16_224", "resnet50"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    precision = pick_precision("auto", device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads, {precision}")
    for model in arguments.models:
        compare(model, arguments.batch, arguments.size, arguments.repeats, device, precision)


if __name__ == "__main__":
    main()
