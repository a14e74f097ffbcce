"""Many image files into few tar shards that are read as fast as the disk can (the layout: reader.py).

The pack holds the images in the order of the set, one for one, so that training on it meets the same images
with the same random crops as training on the files. Nothing of the place or the time gets into it: the same
files and settings give the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from sslkit.core.config.setting import AUTO
from sslkit.core.console import SILENT, Console
from sslkit.core.errors import UserError
from sslkit.core.paths import make_folder, refuse_full, refuse_unwritable
from sslkit.core.value_range import parse_limits
from sslkit.data.images.decode import MIN_SIDE
from sslkit.data.loading.workers import usable_cores
from sslkit.data.packs import reader
from sslkit.data.packs.members import Settings, made, shard_ending
from sslkit.data.packs.tar import OVERHEAD, Shards
from sslkit.data.sources import fractal
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.data.sources.labels import class_numbers
from sslkit.data.sources.layout import Ambiguous
from sslkit.data.sources.names import Names, common_folder
from sslkit.data.sources.set_range import find_range

DEFAULTS = Settings()

_SMALLEST, _LARGEST = 10**4, 10**11  # bytes of a shard
_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Packing:
    """A finished pack. `unreadable`: (name, reason) of images that training will skip, as in the folder."""

    path: Path
    count: int
    bytes: int
    shards: int
    resized: int
    classes: tuple[str, ...]
    unreadable: list[tuple[str, str]]
    seconds: float

    def to_document(self) -> dict[str, Any]:
        """Everything as JSON can say it."""
        return {**asdict(self), "path": str(self.path), "seconds": round(self.seconds, 1)}


def pack(
    sources: Sequence[str],
    out: Path,
    settings: Settings = DEFAULTS,
    workers: int | None = None,
    limit: int | None = None,
    console: Console = SILENT,
    range: str | Sequence[float] | None = None,
) -> Packing:
    """Write the images of `sources` into the new folder `out`, whole or not at all.

    An image that can't be read keeps its place, with the bytes it has; without it every later image would get
    another index, and other crops.

    Args:
        sources: DATA as everywhere, packs included.
        workers: processes that make images smaller; None takes one for each core; without `size` none.
        limit: number of images, the same ones that `data.limit` takes.
        range: as `data.range`, by which images of more than 8 bits are made smaller.

    Raises:
        UserError: nothing to pack, `out` exists, a setting out of range; the disk is full (code 1).
    """
    limits = AUTO if range is None else parse_limits(range)
    if range is not None and not settings.size:
        raise UserError(
            "--range: images are copied with the numbers they have",
            "leave it out, or make them smaller: --size 256",
        )
    _check(out, settings, workers)
    images = open_images(sources, limit)
    for line in images.left_out.lines():
        console.say(line)
    if settings.size:  # what is copied keeps its numbers
        found = find_range(images, limits)
        images = replace(images, range=found.range)
        console.facts(found.facts())
    _check_space(images, out, settings)
    count = (usable_cores() if settings.size else 0) if workers is None else workers
    unfinished = make_folder(out.with_name(f"{out.name}.partial-{os.getpid()}"))
    began = time.monotonic()
    try:
        description = _write(images, _originals(images.paths, sources), unfinished, settings, count, console)
        os.rename(unfinished, out)
    except OSError as problem:
        cure = "free some space" if problem.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another OUT"
        raise UserError(f"{out} can't be written: {problem.strerror}", cure, code=1) from problem
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Packing(
        out,
        len(images),
        sum(shard["bytes"] for shard in description["shards"]),
        len(description["shards"]),
        description["resized"],
        tuple(description["classes"]),
        [(name, reason) for name, reason in description["unreadable"]],
        time.monotonic() - began,
    )


def parse_bytes(text: str) -> int:
    """ "256MB" → 256,000,000. Raises UserError."""
    found = re.fullmatch(r"(\d+)(kB|MB|GB)", text, re.IGNORECASE)
    if found is None:
        cure = f"from {_SMALLEST // 1000}kB to {_LARGEST // 10**9}GB, for example 256MB"
        raise UserError(f"--shard-size {text}: not a number of bytes with its unit", cure)
    return int(found[1]) * next(value for unit, value in _UNITS.items() if unit.lower() == found[2].lower())


def _check(out: Path, settings: Settings, workers: int | None) -> None:
    if settings.size is not None and settings.size < MIN_SIDE:
        problem = f"--size {settings.size}: {MIN_SIDE} pixels or more expected"
        raise UserError(problem, "--size 256, or leave it out to keep images as they are")
    if not 1 <= settings.quality <= 100:
        problem = f"--quality {settings.quality}: 1 to 100 expected"
        raise UserError(problem, f"the default is {DEFAULTS.quality}")
    if not _SMALLEST <= settings.shard_size <= _LARGEST:
        problem = f"--shard-size: {settings.shard_size:,} bytes, 10kB to 100GB expected"
        raise UserError(problem, "--shard-size 256MB is the default")
    if workers is not None and workers < 0:
        raise UserError(f"--workers {workers}: 0 or more expected", "leave it out: one for each core")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists", "choose another folder; nothing is overwritten")
    refuse_unwritable(out)


def _check_space(images: ImageSet, out: Path, settings: Settings) -> None:
    """Copies need what the files have; how small others become is not known before."""
    needed = int(images.sizes.clip(min=0).sum()) + OVERHEAD * len(images)
    if settings.size is None:
        refuse_full(out, needed, "the shards", "another disk, --size or --limit")


def _originals(paths: Names, sources: Sequence[str]) -> Names:
    """What the images are called in the pack: below the folder that was given, or the one they all lie in."""
    if len(sources) == 1 and os.path.isdir(sources[0]):
        root = os.fsencode(os.path.join(os.path.abspath(sources[0]), ""))
    else:
        root = common_folder(path for path in paths.as_bytes() if path.startswith(b"/"))
    return Names.of_bytes(os.fsencode(_original(name)).removeprefix(root) for name in paths)


def _original(name: str) -> str:
    if reader.is_packed_name(name):
        return reader.original(name)
    if fractal.is_name(name):
        system, variant = fractal.parse(name)
        return f"system {system:04}/{variant:05}.png"
    return name


def _write(
    images: ImageSet, originals: Names, folder: Path, settings: Settings, workers: int, console: Console
) -> dict[str, Any]:
    """Everything into `folder`; returns what pack.json says."""
    numbers, classes = _numbered(originals, console)
    places = np.zeros(len(images), [("shard", np.int32), ("offset", np.int64), ("size", np.int64)])
    unreadable, resized, shards = [], 0, Shards(folder, settings.shard_size)
    members = made(images.paths, settings, workers, images.range)
    with console.bar("packing", len(images)) as bar, closing(shards), closing(members):
        for index, member in enumerate(members):
            key = f"{index:09}"
            files = [(f"{key}.{shard_ending(member.content, originals[index])}", member.content)]
            if numbers[index] >= 0:
                files.append((f"{key}.cls", b"%d" % numbers[index]))
            places[index] = (*shards.add(files), len(member.content))
            resized += member.resized
            if member.reason:
                unreadable.append((originals[index], member.reason))
            bar.advance()
        shards.finish()
    blob, ends = originals.parts
    tensors = {name: np.ascontiguousarray(places[name]) for name in places.dtype.names or ()}
    tensors |= {"names": np.frombuffer(blob, np.uint8), "name_ends": ends}
    index_file = save(tensors)
    _store(folder / reader.INDEX, index_file)
    description = {
        "format": reader.FORMAT,
        "count": len(images),
        "settings": asdict(settings),
        "resized": resized,
        "unreadable": unreadable,
        "classes": classes,
        "fingerprint": images.fingerprint,
        "index": {"bytes": len(index_file), "sha256": hashlib.sha256(index_file).hexdigest()},
        "shards": shards.written,
    }
    if settings.size:
        description |= {"range": images.range.setting(), "nodata": list(images.range.nodata)}
    _store(folder / reader.DESCRIPTION, json.dumps(description, indent=1).encode() + b"\n")
    return description


def _numbered(originals: Names, console: Console) -> tuple[NDArray[np.int64], list[str]]:
    """`class_numbers`; no classes where there are none, or, with a warning, where they are ambiguous."""
    try:
        return class_numbers(originals)
    except Ambiguous as problem:
        console.warn(f"packed without classes: {problem.message}", problem.hint)
    except UserError:  # no class folders
        pass
    return np.full(len(originals), -1), []


def _store(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
