"""Folders and files that are never images: what systems leave behind, what sslkit has written, masks
beside photos."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sslkit.core.errors import UserError
from sslkit.data.sources.split_names import roles

PICTURES = ".sslkit-pictures"
"""Names, one a line, of the pictures beside it that sslkit has drawn."""

_RESULTS = ("run.json", "comparison.json")
_WRITTEN = (
    *((name, "config.toml") for name in _RESULTS),
    ("model.safetensors", "config.json"),
    ("probe.json", "table.md"),
    ("pack.json", "index.safetensors"),
    ("pack.json", "shard-000000.tar"),
)
"""Files that lie together in what sslkit writes: runs, comparisons, exports, probe results, packs.

A marker file in each of these folders would have to be copied along by whoever copies a run.
"""
_OURS = tuple(frozenset(map(os.fsencode, names)) for names in _WRITTEN)

# Thumbnails, trash, indexes, resource forks and what repairs have found, of macOS, Windows, Linux,
# Android, NAS systems. Those whose names begin with a dot, .thumbnails and ._* among them, are left out
# as every hidden file is.
_SYSTEM_FOLDERS = frozenset(
    (
        b"__macosx", b"@eadir", b"#recycle", b"#snapshot", b"@recycle", b"@recently-snapshot",
        b"$recycle.bin",
        b"recycler", b"recycled", b"system volume information", b"lost+found", b"lost.dir", b"found.000",
        b"network trash folder", b"temporary items", b"thevolumesettingsfolder", b"__pycache__",
    )
)  # fmt: skip
_SYSTEM_FILES = frozenset(
    (
        b"thumbs.db", b"ehthumbs.db", b"ehthumbs_vista.db", b"desktop.ini", b"picasa.ini",
        b"zbthumbnail.info",
        b"icon\r", b"folder.htt", b"synophoto_thumb.fail",
    )
)  # fmt: skip


def is_system_folder(name: bytes) -> bool:
    return name.startswith(b".") or name.lower() in _SYSTEM_FOLDERS


def is_system_file(name: bytes) -> bool:
    return name.startswith(b".") or name.lower() in _SYSTEM_FILES


def is_written(names: Iterable[bytes]) -> bool:
    """Whether a folder with these files is one that sslkit has written as a whole."""
    there = frozenset(names)
    return any(ours <= there for ours in _OURS)


def drawn_in(folder: bytes) -> frozenset[bytes]:
    """Names of the pictures in a folder that sslkit has drawn there; a marker that can't be read names
    none.
    """
    try:
        with open(os.path.join(folder, os.fsencode(PICTURES)), "rb") as file:
            return frozenset(file.read(1 << 20).split(b"\n")) - {b""}
    except OSError:
        return frozenset()


def mark_drawn(pictures: Iterable[Path]) -> None:
    """Note, beside each picture, that it is no image to learn from. In a run the run itself says so.
    Raises OSError.
    """
    for picture in pictures:
        above = picture.absolute().parents
        if any(_has(str(folder), name) for folder in above[:2] for name in _RESULTS):
            continue
        name = os.fsencode(picture.name)
        if name not in drawn_in(os.fsencode(picture.parent)):
            with (picture.parent / PICTURES).open("ab") as file:
                file.write(name + b"\n")


def refuse_no_images(source: str) -> None:
    """A UserError for a folder whose pictures would be taken for images, with what to give in its place.

    It is about `source` itself: deeper down, masks are folders like any other, and what sslkit has written is
    left out.
    """
    # images/ beside masks/ is not read as images/ alone: DATA stays what was typed, and `probe --local` of
    # the same folder means the masks too.
    if _has(source, "config.toml") and any(_has(source, name) for name in _RESULTS):
        cure = f"give images, such as those that {os.path.join(source, 'config.toml')} names"
        raise UserError(f"{source} is a run, not a folder of images", cure)
    if photos := _beside_masks(source):
        raise UserError(f"{source}: images/ and masks/, and a mask is no photo", f"give {photos}")


def has_masks(source: str) -> bool:
    """Whether `source` holds masks in the place of classes: images/ beside masks/, or its training part
    does.
    """
    return bool(_beside_masks(source))


def parts_of(source: str) -> dict[str, str]:
    """ "train" and the best of what is held out, "val" → the folder in `source` by whatever name it goes."""
    found = roles(folder_names(source)) if os.path.isdir(source) else {}
    ranked = sorted(found, key=lambda name: (found[name].rank, name))
    return {
        "val" if found[name].held_out else "train": os.path.join(source, name) for name in reversed(ranked)
    }


def folder_names(folder: str) -> set[str]:
    """The folders in `folder`, but for hidden ones and those of systems; none where it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if not is_system_folder(os.fsencode(e.name)) and e.is_dir()}
    except OSError:
        return set()


def _beside_masks(source: str) -> str:
    """The images/ that lies beside masks/, in `source` or in its training part; "" where there is none."""
    for part in filter(None, (source, parts_of(source).get("train"))):
        images, masks = (os.path.join(part, name) for name in ("images", "masks"))
        if os.path.isdir(images) and os.path.isdir(masks):
            return images
    return ""


def _has(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))
