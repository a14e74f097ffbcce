"""Packed images: tar shards in the layout of WebDataset, and an index of where in them each image lies.

    pack.json            format, count, settings, classes; bytes and SHA-256 of every other file; of images
                         made smaller the range by which those of more than 8 bits were read
    index.safetensors    shard int32 [N], offset, size int64 [N], names uint8 and their ends int64 [N + 1]
    shard-000000.tar …   000000000.jpg, 000000001.jpg, …; with classes also 000000000.cls, …

An image's name is its place, `pack:/abs/folder/shard-000000.tar:000000000512+10432:class/original.jpg`,
with zeros enough that the order of names is that of the pack.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sslkit.core.errors import UserError
from sslkit.core.files import sha256
from sslkit.core.value_range import BYTES, FULL, Range, parse_range
from sslkit.data.images.decode import ByteRange, UnreadableImage
from sslkit.data.sources.names import Names

FORMAT = "sslkit pack 1"
DESCRIPTION = "pack.json"
INDEX = "index.safetensors"

_PREFIX = "pack:"
_NAME = re.compile(r"pack:(.*?/shard-\d{6}\.tar):(\d{12})\+(\d+):(.*)", re.DOTALL)
_CHUNK = 1 << 14  # images named at once


def shard_name(number: int) -> str:
    return f"shard-{number:06}.tar"


def is_packed_name(text: str) -> bool:
    """Whether `text` is the name of one packed image."""
    return text.startswith(_PREFIX)


def locate(name: str) -> tuple[str, ByteRange | None]:
    """The file that holds an image, and the part of it; None for a file that is the image."""
    if not is_packed_name(name):
        return name, None
    shard, offset, size, _ = _matched(name)
    return shard, (int(offset), int(size))


@contextmanager
def place(name: str) -> Iterator[tuple[str, ByteRange | None]]:
    """`locate` for reading inside; errors name the image by its own name."""
    file, part = locate(name)
    try:
        yield file, part
    except UnreadableImage as error:
        raise UnreadableImage(name, error.reason) from error


def pack_range(names: Names) -> Range | None:
    """The range that packs among the images were made by; None where none has changed its images.

    Raises:
        UserError: packs that were made by different ranges.
    """
    folders = {_folder(name) for name in names.as_bytes() if name.startswith(b"pack:")}
    made = {folder: known for folder in sorted(folders) if (known := _made_by(folder)) is not None}
    if len(set(made.values())) > 1:
        (one, first), *_, (other, last) = made.items()
        problem = f"{one} was made by data.range = {first.in_words()}, {other} by {last.in_words()}"
        raise UserError(problem, "train on one of them, or make both again with the same --range")
    return next(iter(made.values()), None)


def _folder(name: bytes) -> str:
    start = len(_PREFIX)
    return os.fsdecode(name[start : name.index(b"/shard-", start)])


def _made_by(folder: str) -> Range | None:
    """The range of a pack whose images were made smaller; earlier versions read in full."""
    description = _described(folder)
    if "range" not in description:
        return FULL if description.get("resized") else None
    try:
        known = parse_range(description["range"], description.get("nodata", []))
    except (ValueError, TypeError) as problem:
        raise _unfit(folder, f"{DESCRIPTION}: {problem}") from problem
    return None if known == BYTES else known


def original(name: str) -> str:
    """What the packed image was called, relative to the folder it came from."""
    return _matched(name)[3]


def _matched(name: str) -> tuple[str, str, str, str]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"not the name of a packed image: {name!r}")
    shard, offset, size, member = found.groups()
    return shard, offset, size, member


def is_pack(folder: str) -> bool:
    """Whether a folder is a pack, whole or not; any other folder may hold a pack.json too."""
    return os.path.isfile(os.path.join(folder, DESCRIPTION)) and (
        os.path.exists(os.path.join(folder, INDEX)) or os.path.exists(os.path.join(folder, shard_name(0)))
    )


def names_of(folder: str) -> Names:
    """Names of all images of a pack, in their order; nothing but its index is read.

    Raises:
        UserError: something is missing, shorter than it was written, or does not fit together.
    """
    root = os.path.abspath(folder)
    description = _described(folder)
    index = _indexed(folder, description)
    shards = description["shards"]
    lengths = np.array([_checked_size(folder, shard_name(i), shards[i]) for i in range(len(shards))])
    _check_places(folder, index, lengths)
    members = Names.of_parts(index["names"].tobytes(), index["name_ends"])
    _check_members(folder, members)
    names = Names.of_bytes(_named(root, index, members))
    if len(names) and _matched(names[0])[0] != os.path.join(root, shard_name(int(index["shard"][0]))):
        raise UserError(
            f"{folder}: a pack can't lie below a folder that is named like a shard", "move the pack elsewhere"
        )
    return names


def _named(root: str, index: dict[str, NDArray[Any]], members: Names) -> Iterator[bytes]:
    start, member = os.fsencode(f"{_PREFIX}{root.rstrip(os.sep)}/"), members.as_bytes()
    for first in range(0, len(members), _CHUNK):
        rows = (index[key][first : first + _CHUNK].tolist() for key in ("shard", "offset", "size"))
        for shard, offset, size in zip(*rows, strict=True):
            yield b"%bshard-%06d.tar:%012d+%d:%b" % (start, shard, offset, size, next(member))


def _described(folder: str) -> dict[str, Any]:
    try:
        with open(os.path.join(folder, DESCRIPTION), encoding="utf-8") as file:
            description: dict[str, Any] = json.load(file)
        version, count = description["format"], description["count"]
        files = [description["index"], *description["shards"]]
        sizes = [(entry["bytes"], entry["sha256"]) for entry in files]
        whole = isinstance(count, int) and all(isinstance(size, int) for size, _ in sizes) and len(files) > 1
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise _unfit(
            folder, f"{DESCRIPTION} can't be read ({type(problem).__name__}: {problem})"
        ) from problem
    if version != FORMAT or not whole:
        raise _unfit(folder, f"{DESCRIPTION} says {version!r}, this version reads {FORMAT!r}")
    return description


def _indexed(folder: str, description: dict[str, Any]) -> dict[str, NDArray[Any]]:
    path, expected = Path(folder, INDEX), description["index"]
    _checked_size(folder, INDEX, expected)
    try:
        digest, index = sha256(path), load_file(path)
    except (OSError, SafetensorError) as problem:
        raise _unfit(folder, f"{INDEX} can't be read ({problem})") from problem
    if digest != expected["sha256"]:
        raise _unfit(folder, f"{INDEX} is not the one in {DESCRIPTION}")
    shapes = {
        "shard": np.int32,
        "offset": np.int64,
        "size": np.int64,
        "name_ends": np.int64,
        "names": np.uint8,
    }
    count = description["count"]
    if any(
        key not in index or index[key].ndim != 1 or index[key].dtype != kind for key, kind in shapes.items()
    ):
        raise _unfit(folder, f"{INDEX} lacks one of {', '.join(shapes)}, or has it in another form")
    if {len(index[key]) for key in ("shard", "offset", "size")} != {count} or len(
        index["name_ends"]
    ) != count + 1:
        raise _unfit(folder, f"{INDEX} does not hold the {count} images of {DESCRIPTION}")
    return index


def _checked_size(folder: str, name: str, entry: dict[str, Any]) -> int:
    """Bytes of a file that must be as long as it was written."""
    try:
        size = os.stat(os.path.join(folder, name)).st_size
    except OSError as problem:
        raise _unfit(folder, f"{name} can't be read: {problem.strerror}") from problem
    if size != entry["bytes"]:
        raise _unfit(folder, f"{name} has {size} bytes, {entry['bytes']} expected")
    return size


def _check_places(folder: str, index: dict[str, NDArray[Any]], lengths: NDArray[np.int64]) -> None:
    """Every image inside its shard, one behind the other."""
    shard, offset, size = index["shard"].astype(np.int64), index["offset"], index["size"]
    ends = index["name_ends"]
    inside = bool(np.all((shard >= 0) & (shard < len(lengths)) & (offset >= 0) & (size >= 0)))
    # Subtracted, not added: a sum of two hostile numbers may overflow.
    inside = inside and bool(np.all((offset <= lengths[shard]) & (size <= lengths[shard] - offset)))
    step, further = np.diff(shard), np.diff(offset) >= size[:-1]
    ordered = bool(np.all((step > 0) | ((step == 0) & further)))
    named = ends[0] == 0 and bool(np.all(np.diff(ends) > 0)) and ends[-1] == len(index["names"])
    if not (inside and ordered and named):
        raise _unfit(folder, f"{INDEX} points outside of the shards, or is out of order")


def _check_members(folder: str, members: Names) -> None:
    """Names are only shown and taken for labels, never opened; still, none may look like another file's."""
    for name in members.as_bytes():
        if b"\0" in name or name.startswith(b"/") or (b".." in name and b".." in name.split(b"/")):
            raise _unfit(folder, f"{INDEX} names {os.fsdecode(name)!r}")


def _unfit(folder: str, reason: str) -> UserError:
    return UserError(f"{folder}: {reason}", "copy the pack anew, or make it again: sslkit pack DATA OUT")
