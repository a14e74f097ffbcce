"""Reading photographs: the usual ImageFolder loader against sslkit's, and Pillow's decoder alone, in one run.

    python benchmarks/loader.py PHOTOS                # a folder of any photographs, to make the files from
    python benchmarks/loader.py PHOTOS --packed PACK  # and a pack, as `sslkit pack --size 256` writes it
    python benchmarks/loader.py PHOTOS --as-they-are  # the files themselves

Images a second of one core, in CPU time: one thread, no workers, medians of interleaved passes over the same
images after a warm-up, the same crops in all passes. The photographs are brought to 500 x 375 and 2000 x 1500
pixels at quality 90. Small ones that are scaled up lack fine detail, and their files are a fifth of a
camera's: the row "with grain" adds noise to the ordinary size, until a file has the half byte a pixel of
ImageNet's. The usual side is torchvision's RandomResizedCrop(224, bicubic), flip, ToTensor and Normalize on
Pillow's image.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import torch
from frequency import medians
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.data.images import turbo
from sslkit.data.loading.loader import ViewDataset
from sslkit.data.sources.image_set import ImageSet, open_images

USUAL = transforms.Compose(
    [
        transforms.RandomResizedCrop(224, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)
LIBRARY = turbo.library
MADE = {  # size, grain in levels, images for each of those wanted
    "500 x 375": ((500, 375), 0.0, 1.0),
    "500 x 375, with grain": ((500, 375), 12.0, 1.0),
    "2000 x 1500": ((2000, 1500), 0.0, 0.25),
}


def write_photos(photos: ImageSet, folder: str, size: tuple[int, int], grain: float, count: int) -> ImageSet:
    """`count` of the photographs as JPEG; the long side is the first of `size`, lying or upright."""
    random = np.random.default_rng(0)
    for number in range(count):
        photo = photos.read(number * len(photos) // count)
        across = size if photo.width >= photo.height else size[::-1]
        pixels = np.asarray(photo.resize(across, Image.Resampling.BICUBIC))
        noise = random.normal(0, grain, (*pixels.shape[:2], 1))  # grey, as most of a camera's is
        noisy = (pixels + noise).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(f"{folder}/{number:05}.jpg", quality=90)
    return open_images([folder])


def decode_all(images: ImageSet) -> None:
    for path in images.paths:
        with open(path, "rb") as file, Image.open(file) as image:
            image.load()


def usual(images: ImageSet) -> None:
    torch.manual_seed(0)
    for path in images.paths:
        with open(path, "rb") as file, Image.open(file) as image:
            USUAL(image.convert("RGB"))


def ours(images: ImageSet, library: ModuleType | None) -> None:
    turbo.library = library
    dataset = ViewDataset(images, Views(image=RandomResizedCrop(224)), seed=0)
    for index in range(len(images)):
        dataset[(0, index)]


def report(name: str, images: ImageSet, repeats: int, packed: ImageSet | None = None) -> None:
    calls: dict[str, Callable[[], None]] = {
        "Pillow's decoder alone": partial(decode_all, images),
        "the usual loader": partial(usual, images),
        "sslkit": partial(ours, images, None),
    }
    if LIBRARY is not None:
        calls["sslkit, simplejpeg"] = partial(ours, images, LIBRARY)
    if packed is not None:
        calls["sslkit, packed"] = partial(ours, packed, LIBRARY)
    rates = dict(
        zip(
            calls,
            (1000 * len(images) / ms for ms in medians([*calls.values()], repeats, "cpu", time.process_time)),
            strict=True,
        )
    )
    kilobytes = statistics.median(images.sizes.tolist()) / 1000
    print(f"\n{name}: {len(images)} images, {kilobytes:.0f} kB each      images/s   x usual   of decoding")
    decoding, baseline = rates["Pillow's decoder alone"], rates["the usual loader"]
    for side, rate in rates.items():
        print(f"  {side:40}{rate:17.0f}{rate / baseline:10.2f}{rate / decoding:13.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", help="a folder of photographs")
    parser.add_argument("--packed", help="a pack of these photographs")
    parser.add_argument("--as-they-are", action="store_true", help="read the photographs themselves")
    parser.add_argument("--count", type=int, default=100, help="images")
    parser.add_argument("--repeats", type=int, default=5, help="passes that are timed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = open_images([options.photos])
    count = min(options.count, len(photos))
    if options.as_they_are or options.packed:
        chosen = range(0, len(photos), max(1, len(photos) // count))
        packed = open_images([options.packed]).subset(chosen) if options.packed else None
        report("as they are", photos.subset(chosen), options.repeats, packed)
        return
    for name, (size, grain, share) in MADE.items():
        with tempfile.TemporaryDirectory() as folder:
            report(
                name, write_photos(photos, folder, size, grain, max(1, int(share * count))), options.repeats
            )


if __name__ == "__main__":
    main()
