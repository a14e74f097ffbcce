"""A million files: how long they take to list, what they cost in memory, and ten billion that do not exist.

    python benchmarks/listing.py                     # 1,000,000 files against 1,000, in a temporary folder
    python benchmarks/listing.py --count 100000 --folder /mnt/data

The files are links to a few small JPEGs, so that they can be read and take no room. Times are of a warm file
system, the best of three: `plain` walks with os.walk and os.stat, as many tools do; `anew` has no cache;
`cached` finds what the call before has kept. `fingerprint` looks at every file's size. Memory is the
proportional set size (PSS) of a process that lists, writes the listing and trains on nothing, with workers
that read; Linux only. It is measured in processes of their own, so that none has what the other left.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.data.loading.loader import KeyedBatches, pretraining_loader
from sslkit.data.sources import listing
from sslkit.data.sources.image_set import open_images
from sslkit.training.run.resume_check import list_images

FEW = 1_000
FOLDER = 1_000  # files of one folder
LINKS = 50_000  # to one file: ext4 takes no more than 65,000
VIRTUAL = 10**10


def make_files(root: Path, count: int) -> None:
    for number in range(count):
        folder = root / "images" / f"{number // FOLDER:06}"
        origin = root / f"{number // LINKS}.jpg"
        if number % FOLDER == 0:
            folder.mkdir(parents=True)
        if number % LINKS == 0:
            Image.new("RGB", (32, 32), (number // LINKS, 99, 30)).save(origin)
        os.link(origin, folder / f"{number:09}_photo.jpg")


def walk(root: str) -> int:
    """What a plain tool does: every path and its size."""
    found = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
    return sum(os.stat(path).st_size for path in sorted(found))


def seconds(call: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """The least wall and the least CPU time; the latter says little of a busy machine's other work."""
    walls, works = [], []
    for _ in range(repeats):
        began, worked = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - began)
        works.append(time.process_time() - worked)
    return min(walls), min(works)


def compare_times(root: str, cache: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = os.devnull  # no folder: nothing is kept
    plain, anew = seconds(lambda: walk(root)), seconds(lambda: listing.look_through(root))
    os.environ["XDG_CACHE_HOME"] = str(cache)
    listing.look_through(root)
    cached = seconds(lambda: listing.look_through(root))
    fingerprint = seconds(lambda: open_images([root]).fingerprint)
    for name, (wall, work) in {
        "plain os.walk, sort, os.stat": plain,
        "listing, anew": anew,
        "listing, cached": cached,
        "listing, cached, and fingerprint": fingerprint,
    }.items():
        print(f"{name:<33} {wall:6.2f} s, CPU {work:6.2f} s", flush=True)


def memory_of(folder: str, workers: int) -> None:
    """In a process of its own: PSS in MB, of it and of its workers, as JSON."""
    images = open_images([folder])
    assert images.fingerprint
    with tempfile.TemporaryDirectory() as run:
        list_images(images, Path(run))
    batches = pretraining_loader(
        images,
        Views(image=RandomResizedCrop(32)),
        batch_size=64,
        seed=0,
        start_step=0,
        steps=40,
        steps_per_epoch=len(images) // 64,
        workers=workers,
    )
    for _ in range(30):
        next(batches)
    children = [child.pid for child in multiprocessing.active_children() if child.pid]
    print(json.dumps([pss(os.getpid()), sum(map(pss, children))]))


def pss(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def compare_memory(root: Path, count: int, workers: int) -> None:
    rows = []
    for images, folder in ((FEW, root / "images" / "000000"), (count, root / "images")):
        words = [sys.executable, __file__, "--memory-of", str(folder), "--workers", str(workers)]
        rows.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
        print(
            f"{images:>10,} images: main process {rows[-1][0]:.0f} MB, {workers} workers {rows[-1][1]:.0f} MB"
        )
    print(f"    more: {sum(rows[1]) - sum(rows[0]):.0f} MB in all")


def virtual() -> None:
    """Batches of a set of ten billion images, from its last epoch's last steps."""
    per_epoch = VIRTUAL // 2048

    def resumed() -> KeyedBatches:
        return KeyedBatches(VIRTUAL, 2048, 0, 3 * per_epoch - 8, 3 * per_epoch, per_epoch)

    first, _ = seconds(lambda: next(iter(resumed())))
    tracemalloc.start()
    for _ in resumed():
        pass
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(f"{VIRTUAL:,} images: first batch after {1000 * first:.1f} ms, at most {peak:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where the files are made; the system's temporary folder by default")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory_of:
        memory_of(chosen.memory_of, chosen.workers)
        return
    virtual()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
        root = Path(place)
        print(f"{chosen.count:,} files made in {seconds(lambda: make_files(root, chosen.count), 1)[0]:.0f} s")
        time.sleep(2.5)  # a folder that has just changed is not kept
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        compare_times(str(root / "images"), root / "cache")
        if Path("/proc/self/smaps_rollup").exists():
            compare_memory(root, chosen.count, chosen.workers)


if __name__ == "__main__":
    main()
