"""A set decoded once and kept, against its files read again and again: images a second, in one run.

    python benchmarks/cache.py                                  # CIFAR-10 and 224-px photos, where they are
    python benchmarks/cache.py --data photos/ --size 224        # images of your own
    python benchmarks/cache.py --device cuda                    # whole batches cut out on the GPU
    python benchmarks/cache.py --resampler                      # batched crops against one call an image

Two random views of each image come from the loader and nothing is trained. Both sides take turns and make the
same batches (compared bit for bit first); medians over the repeats. Decoding the set once is timed apart.
Without workers this process does all the work, and other programs spoil its CPU time least.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice, starmap
from pathlib import Path
from typing import Any

import torch
from frequency import medians
from torch import Tensor

from sslkit.augmentations.batch_crops import crop_resize_batch
from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.data.images.picture import Cut, Picture
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.training.loop.cached_loader import cached_loader

SETS = [("../data/cifar10/train", 32), ("../data/clothing224/train", 224)]
BATCH = 64
WARM = 8  # batches before timing: workers' stocks are gone then, and the other side's are full again


def loader(images: ImageSet, cache: str, size: int, workers: int, device: str) -> Any:
    """Batches without end in sight."""
    crop = RandomResizedCrop(size)
    return cached_loader(
        cache,
        torch.device(device),
        images,
        Views(first=crop, second=crop),
        batch_size=BATCH,
        seed=0,
        start_step=0,
        steps=10**9,
        steps_per_epoch=len(images) // BATCH,
        workers=workers,
    )


def rates(batches: Iterator[Any], steps: int, device: str) -> tuple[float, float]:
    """Images a second over `steps` batches, and images a second of this process's CPU time."""
    for _ in islice(batches, WARM):
        pass
    began, worked = time.perf_counter(), time.process_time()
    for _ in islice(batches, steps):
        pass
    if device != "cpu":
        torch.cuda.synchronize()
    wall, work = time.perf_counter() - began, time.process_time() - worked
    return steps * BATCH / wall, steps * BATCH / work


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(torch.equal(value.cpu(), second[name].cpu()) for name, value in first.items() if name != "bad")


def compare(images: ImageSet, size: int, workers: int, steps: int, repeats: int, device: str) -> None:
    began, worked = time.perf_counter(), time.process_time()
    kept = loader(images, "memory", size, workers, device)
    once, work = time.perf_counter() - began, time.process_time() - worked
    with closing(kept), closing(loader(images, "off", size, workers, device)) as files:
        equal = all(starmap(same, islice(zip(kept, files, strict=True), WARM)))
        turns = [(rates(files, steps, device), rates(kept, steps, device)) for _ in range(repeats)]
    print(
        f"{len(images):,} images, {size} px, {workers} workers; decoded once in {once:.1f} s, "
        f"CPU of this process {work:.1f} s; batches equal: {equal}"
    )
    for unit, name in enumerate(("second", "second of CPU time") if workers == 0 else ("second",)):
        pairs = [(read[unit], memory[unit]) for read, memory in turns]
        read, memory = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(memory / read for read, memory in pairs)
        print(f"    a {name}: files {read:.0f}, kept {memory:.0f}, {ratio:.1f} ×", flush=True)


def resampler(repeats: int, device: str) -> None:
    """Milliseconds for a batch of crops: one call of F.interpolate an image on the CPU, or all at once."""
    for side, size in ((32, 32), (96, 96), (128, 224)):
        random = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8, generator=random)
        lengths = side // 2 + (torch.rand(BATCH, 2, generator=random) * (side // 2 + 1)).long()
        boxes = torch.cat([(side - lengths) // 2, lengths], 1)
        flips = torch.rand(BATCH, generator=random) < 0.5
        pictures = [Picture(image.permute(1, 2, 0).contiguous().numpy()) for image in images]
        left, top, width, height = boxes.T.tolist()
        places = list(zip(left, top, width, height, strict=True))
        cuts = [Cut(place, size, bool(flip)) for place, flip in zip(places, flips, strict=True)]
        there = images.to(device)

        def singly(pictures: list[Picture] = pictures, cuts: list[Cut] = cuts) -> Tensor:
            pairs = zip(pictures, cuts, strict=True)
            return torch.stack([picture.crops([cut])[0] for picture, cut in pairs])

        def at_once(there: Tensor = there, known: tuple[Any, ...] = (boxes, flips, size)) -> Tensor:
            return crop_resize_batch(there, *known)

        equal = torch.equal(singly(), at_once().cpu())
        one, batched = medians([singly, at_once], repeats, device)
        print(
            f"{BATCH} crops of {side} px at {size} px: one by one on the CPU {one:.2f} ms, "
            f"at once on {device} {batched:.2f} ms; equal: {equal}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--limit", type=int, help="use only N images")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resampler", action="store_true")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    if arguments.resampler:
        return resampler(arguments.repeats, arguments.device)
    root = Path(__file__).parents[1]
    chosen = [(arguments.data, arguments.size)] if arguments.data else [(root / p, s) for p, s in SETS]
    for folder, size in chosen:
        if not folder.is_dir():
            print(f"{folder}: not here, left out; --data names a folder")
            continue
        images = open_images([str(folder)], arguments.limit)
        for workers in (0, 1):
            compare(images, size, workers, arguments.steps, arguments.repeats, arguments.device)
    return None


if __name__ == "__main__":
    main()
