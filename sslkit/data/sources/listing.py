"""The image files under a folder, in the order of their bytes, and what else lies there; what has not
changed is not read again.

A folder's own change times say whether a file was added, removed or renamed in it. So what a folder held is
kept in the user's cache, and a folder with the same times is taken from there. What is in doubt is read anew.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sslkit.core.files import replacing
from sslkit.data.images import formats
from sslkit.data.sources.folders import PICTURES, drawn_in, is_system_file, is_system_folder, is_written
from sslkit.data.sources.names import Names

KEPT_FROM = 20_000
"""Images from which a listing is kept; fewer are read in no time."""
SETTLED = 2 * 10**9
"""Nanoseconds a folder must have been left alone: file systems count time in steps of up to two seconds."""

_ENDINGS = tuple(map(os.fsencode, formats.ENDINGS))
_SEPARATOR = os.fsencode(os.sep)
_BETWEEN = b"\0"  # names: the one byte that none of them holds
_MARKER = os.fsencode(PICTURES)
_VERSION = b"sslkit listing 2\n"

Identity = tuple[int, int, int, int]
"""Device, inode, mtime and ctime of a folder; ctime too, because tools that copy set mtime back."""


class Folder(NamedTuple):
    """What lies in one folder itself: sorted names, joined by _BETWEEN."""

    images: bytes
    folders: bytes
    passed: bytes  # the endings of all files that are not read, each with its count: b"12 .txt"
    written: bytes  # pictures that sslkit has drawn; b"./": all of the folder


class Listing(NamedTuple):
    """What lies under a folder."""

    images: Names
    passed: Counter[str]  # ending, in small letters, "" for none → files that are not read
    written: list[str]  # what sslkit has written, relative to the folder; a folder of its own ends in "/"


def look_through(root: str, deep: bool = True) -> Listing:
    """Names of all image files under the absolute folder `root`, sorted by their bytes, and what else
    lies there.

    Hidden files and folders, what systems leave behind, and what sslkit has written are left out; links to
    folders are followed, each real folder once, and folders that may not be entered are passed over. Without
    `deep` folders inside are none.
    """
    kept = _kept_file(root) if deep else None
    known, began = _load(kept), time.time_ns()
    tree: dict[bytes, Folder] = {}
    settled: dict[Identity, Folder] = {}
    top = os.path.join(os.fsencode(root), b"")
    pending, seen = [top], set()  # a stack: folders may be deeper than Python's limit of recursion
    while pending:
        path = pending.pop()
        try:
            status = os.stat(path)
            if status[1:3] in seen:  # inode and device: a link back, or a second way to the same folder
                continue
            identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            folder, certain = (known[identity], True) if identity in known else _read(path)
        except OSError:
            continue
        seen.add(status[1:3])
        tree[path] = folder
        if certain and max(identity[2:]) + SETTLED <= began:
            settled[identity] = folder
        inside = sorted(_parted(folder.folders if deep else b""), key=os.fsdecode, reverse=True)
        pending += [path + name + _SEPARATOR for name in inside]
    found = Names.of_bytes(_in_order(top, tree))
    if kept and len(found) > KEPT_FROM and settled.keys() != known.keys():
        _save(kept, settled)
    return Listing(found, _passed(tree.values()), sorted(_written(top, tree), key=os.fsencode))


def _read(path: bytes) -> tuple[Folder, bool]:
    """A folder's content, and whether its times change with it.

    They don't with what lies behind a link, nor with what a file without an ending holds.
    """
    images: list[bytes] = []
    folders: list[bytes] = []
    others: list[bytes] = []
    certain, marked = True, False
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                marked = marked or name == _MARKER
                continue
            certain = certain and not entry.is_symlink()
            if _is(os.DirEntry.is_dir, entry):
                folders.append(name)
            elif _is(os.DirEntry.is_file, entry):
                (images if name.lower().endswith(_ENDINGS) else others).append(name)
    if is_written(others):
        return Folder(b"", b"", b"", b"./"), certain
    passed: Counter[bytes] = Counter()
    for name in others:
        if is_system_file(name):
            continue
        ending = formats.ending(name)
        certain = certain and bool(ending)
        if formats.is_image(ending) if ending else formats.looks_like_image(path + name):
            images.append(name)
        else:
            passed[ending] += 1
    drawn = drawn_in(path).intersection(images) if marked else frozenset()
    return Folder(
        _BETWEEN.join(sorted(set(images) - drawn if drawn else images)),
        _BETWEEN.join(sorted(name for name in folders if not is_system_folder(name))),
        _BETWEEN.join(b"%d %b" % (count, ending) for ending, count in sorted(passed.items())),
        _BETWEEN.join(sorted(drawn)),
    ), certain


def _parted(joined: bytes) -> Iterable[bytes]:
    return filter(None, joined.split(_BETWEEN))


def _passed(folders: Iterable[Folder]) -> Counter[str]:
    passed: Counter[str] = Counter()
    for folder in folders:
        for counted in _parted(folder.passed):
            count, _, ending = counted.partition(b" ")
            passed[os.fsdecode(ending)] += int(count)
    return passed


def _written(top: bytes, tree: Mapping[bytes, Folder]) -> Iterator[str]:
    for path, folder in tree.items():
        for name in _parted(folder.written):
            yield os.fsdecode((path if name == b"./" else path + name).removeprefix(top) or name)


def _is(kind: Callable[[os.DirEntry[bytes]], bool], entry: os.DirEntry[bytes]) -> bool:
    """False for a link that leads to itself or to a forbidden place, for which `kind` raises."""
    try:
        return kind(entry)
    except OSError:
        return False


def _in_order(top: bytes, tree: Mapping[bytes, Folder]) -> Iterator[bytes]:
    """Paths of all images, sorted by their bytes; folders are walked where their name with a "/" belongs."""
    stack = [_entries(top, tree)]
    while stack:
        for path in stack[-1]:
            if path.endswith(_SEPARATOR):
                stack.append(_entries(path, tree))
                break
            yield path
        else:
            stack.pop()


def _entries(path: bytes, tree: Mapping[bytes, Folder]) -> Iterator[bytes]:
    """Images and those folders that the tree holds, sorted; folders end in a separator."""
    images, folders = _parted(tree[path].images), _parted(tree[path].folders)
    inside = sorted(path + name + _SEPARATOR for name in folders)
    return heapq.merge((path + name for name in images), (name for name in inside if name in tree))


def _kept_file(root: str) -> Path | None:
    """Where the listing of `root` is kept; None for people without a home."""
    caches = os.environ.get("XDG_CACHE_HOME", "") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    return Path(caches, "sslkit", "listings", key) if os.path.isabs(caches) else None


def _load(kept: Path | None) -> dict[Identity, Folder]:
    """What was kept; nothing where it is missing, damaged or of another version."""
    try:
        content = kept.read_bytes() if kept else b""
        version, digest, body = (content[:17], content[17:49], content[49:])
        if version != _VERSION or hashlib.sha256(body).digest() != digest:
            return {}
        tensors = load(body)
        if tensors["rules"].tobytes() != formats.rules().encode():
            return {}
        columns = (
            Names.of_parts(tensors[name].tobytes(), tensors[f"{name}_ends"]).as_bytes()
            for name in Folder._fields
        )
        identities = map(tuple, tensors["identities"].tolist())
        return dict(zip(identities, map(Folder, *columns), strict=True))
    except (OSError, SafetensorError, KeyError, ValueError):
        return {}


def _save(kept: Path, settled: Mapping[Identity, Folder]) -> None:
    """Replaced as a whole; nothing happens where the cache can't be written."""
    tensors = {"identities": np.array(list(settled), dtype=np.int64).reshape(-1, 4)}
    tensors["rules"] = np.frombuffer(formats.rules().encode(), np.uint8)
    for name in Folder._fields:
        blob, ends = Names.of_bytes(getattr(folder, name) for folder in settled.values()).parts
        tensors |= {name: np.frombuffer(blob, np.uint8), f"{name}_ends": ends}
    with suppress(OSError, OverflowError):  # the latter: an inode beyond 63 bits
        body = save(tensors)
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(kept) as unfinished:
            unfinished.write_bytes(_VERSION + hashlib.sha256(body).digest() + body)
