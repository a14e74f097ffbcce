"""Photometry of SimCLR's two views: torchvision v2 image by image against sslkit's batches, in one run.

    python benchmarks/photometry.py                     # 128 images at 96 px, one thread
    python benchmarks/photometry.py --sizes 32 96 224 --batch 64
    python benchmarks/photometry.py --device cuda --batch 512

Both sides start from the cropped uint8 images and end with float images in [0, 1]. torchvision's transforms
run on PIL images, on uint8 tensors and on float tensors, always on one core; the fastest counts. Medians of
interleaved repeats after a warm-up.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from frequency import medians
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from sslkit.augmentations.color import color_jitter
from sslkit.augmentations.photometric import Photometry, gaussian_blur


def smooth_images(count: int, size: int) -> Tensor:
    """uint8 [count, 3, size, size]: coarse colours with some grain, as a photograph has both."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    grain = 0.05 * torch.randn(images.shape, generator=generator)
    return ((images + grain).clamp(0, 1) * 255).round().to(torch.uint8)


def torchvision_view(size: int) -> v2.Compose:
    blur = v2.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([blur], 0.5),
        ]
    )


def as_float(image: Any) -> Tensor:
    result: Tensor = v2.functional.to_dtype(v2.functional.to_image(image), torch.float32, scale=True)
    return result


def torchvision_forms(images: Tensor) -> dict[str, Callable[[], object]]:
    """Two views of every image, with the transforms on three kinds of image."""
    view = torchvision_view(images.shape[-1])
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]

    def two_views(
        source: Sequence[Any], first: Callable[[Any], Any], last: Callable[[Any], Tensor]
    ) -> object:
        return [torch.stack([last(view(first(image))) for image in source]) for _ in range(2)]

    return {
        "PIL": lambda: two_views(pictures, lambda image: image, as_float),
        "uint8": lambda: two_views(list(images), lambda image: image, as_float),
        "float": lambda: two_views(list(images), as_float, lambda image: image),
    }


def largest_difference(images: Tensor) -> float:
    """Between both sides for equal parameters: jitter in a random order, then blur."""
    count = len(images)
    generator = torch.Generator().manual_seed(1)
    factors = 0.2 + 1.6 * torch.rand(3, count, generator=generator)
    hue = torch.rand(count, generator=generator) - 0.5
    sigma = 0.1 + 1.9 * torch.rand(count, generator=generator)
    order = torch.rand(count, 4, generator=generator).argsort(1)
    kernel_size = 2 * (images.shape[-1] // 20) + 1
    ours = gaussian_blur(
        color_jitter(images, factors[0], factors[1], factors[2], hue, order), sigma, kernel_size
    )
    operations = [
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    ]
    worst = 0.0
    for number, image in enumerate(images):
        values = [*factors[:, number].tolist(), hue[number].item()]
        for step in order[number].tolist():
            image = operations[step](image, values[step])
        image = reference.gaussian_blur(image, [kernel_size, kernel_size], [sigma[number].item()] * 2)
        worst = max(worst, (ours[number] - image).abs().max().item())
    return worst


def compare(count: int, size: int, repeats: int, device: str) -> None:
    images = smooth_images(count, size)
    index, view = torch.arange(count, device=device), Photometry()
    on_device = images.to(device)

    def ours() -> object:
        floats = on_device.float() / 255
        return [view(floats, index, 0, 0, name) for name in ("first", "second")]

    forms = torchvision_forms(images)
    *theirs, mine = medians([*forms.values(), ours], repeats, device)
    print(f"{count} images at {size} px, two views each, microseconds per view:")
    for name, milliseconds in zip([*forms, "sslkit"], [*theirs, mine], strict=True):
        print(f"{name:>10} {1e3 * milliseconds / (2 * count):8.1f}")
    difference = largest_difference(images[:64].float() / 255)
    print(
        f"{min(theirs) / mine:.1f} × the fastest torchvision form; largest difference {difference:.1e} of 1"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[96])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if arguments.device != "cpu" else platform.machine()
    print(f"torch {torch.__version__}, {name}, one thread")
    for size in arguments.sizes:
        compare(arguments.batch, size, arguments.repeats, arguments.device)


if __name__ == "__main__":
    main()
