"""The image files under a folder, in the order of their bytes; what has not changed is not read again.

A folder's own change times say whether a file was added, removed or renamed in it. So what a folder held is
kept in the user's cache, and a folder with the same times is taken from there. What is in doubt is read anew.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sslkit.data.names import Names
from sslkit.files import replacing

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".mpo",
)  # fmt: skip
"""File endings a folder is searched for, in any case of letters."""
KEPT_FROM = 20_000
"""Images from which a listing is kept; fewer are read in no time."""
SETTLED = 2 * 10**9
"""Nanoseconds a folder must have been left alone: file systems count time in steps of up to two seconds."""

_ENDINGS = tuple(map(os.fsencode, ENDINGS))
_SEPARATOR = os.fsencode(os.sep)
_BETWEEN = b"\0"  # names: the one byte that none of them holds
_VERSION = b"sslkit listing 1\n"

Identity = tuple[int, int, int, int]  # device, inode, time of the last change of content, of anything


class Folder(NamedTuple):
    """What lies in one folder itself: sorted names, joined by _BETWEEN."""

    images: bytes
    folders: bytes


def image_files(root: str) -> Names:
    """Names of all image files under the absolute folder `root`, sorted by their bytes.

    Hidden files and folders are left out, links to folders are followed, each real folder once, and folders
    that may not be entered are passed over.
    """
    kept = _kept_file(root)
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
        inside = sorted(filter(None, folder.folders.split(_BETWEEN)), key=os.fsdecode, reverse=True)
        pending += [path + name + _SEPARATOR for name in inside]
    found = Names.of_bytes(_in_order(top, tree))
    if kept and len(found) > KEPT_FROM and settled.keys() != known.keys():
        _save(kept, settled)
    return found


def _read(path: bytes) -> tuple[Folder, bool]:
    """A folder's content, and whether its times would tell of every change: not of those behind a link."""
    images, folders, certain = [], [], True
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                continue
            if entry.is_symlink():
                certain = False
            if _is(os.DirEntry.is_dir, entry):
                folders.append(name)
            elif name.lower().endswith(_ENDINGS) and _is(os.DirEntry.is_file, entry):
                images.append(name)
    return Folder(_BETWEEN.join(sorted(images)), _BETWEEN.join(sorted(folders))), certain


def _is(kind: Callable[[os.DirEntry[bytes]], bool], entry: os.DirEntry[bytes]) -> bool:
    """False for a link that leads to itself, or to where nobody may look, which raise."""
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
    images, folders = (filter(None, names.split(_BETWEEN)) for names in tree[path])
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
        images, folders = (
            Names.of_parts(tensors[name].tobytes(), tensors[f"{name}_ends"]) for name in Folder._fields
        )
        identities = map(tuple, tensors["identities"].tolist())
        held = map(Folder, images.as_bytes(), folders.as_bytes())
        return dict(zip(identities, held, strict=True))
    except (OSError, SafetensorError, KeyError, ValueError):
        return {}


def _save(kept: Path, settled: Mapping[Identity, Folder]) -> None:
    """Replaced as a whole; a cache that can't be written is none."""
    tensors = {"identities": np.array(list(settled), dtype=np.int64).reshape(-1, 4)}
    for name in Folder._fields:
        blob, ends = Names.of_bytes(getattr(folder, name) for folder in settled.values()).parts
        tensors |= {name: np.frombuffer(blob, np.uint8), f"{name}_ends": ends}
    with suppress(OSError, OverflowError):  # the latter: an inode beyond 63 bits
        body = save(tensors)
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(kept) as unfinished:
            unfinished.write_bytes(_VERSION + hashlib.sha256(body).digest() + body)
