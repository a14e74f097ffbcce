"""Folders that hold pictures and are no folder of images: a run, and photos beside their masks."""

from __future__ import annotations

import os

from sslkit.errors import UserError

_RESULTS = ("run.json", "comparison.json")


def refuse_no_images(source: str) -> None:
    """A UserError for a folder whose pictures would be taken for images, with what to give in its place.

    It is about `source` itself: deeper down, runs and masks are folders like any other.
    """
    if _has(source, "config.toml") and any(_has(source, name) for name in _RESULTS):
        cure = f"give images, such as those that {os.path.join(source, 'config.toml')} names"
        raise UserError(f"{source} is a run, not a folder of images", cure)
    if photos := _beside_masks(source):
        raise UserError(f"{source}: images/ and masks/, and a mask is no photo", f"give {photos}")


def has_masks(source: str) -> bool:
    """Whether `source` holds masks in the place of classes: images/ beside masks/, or train/ does."""
    return bool(_beside_masks(source))


def _beside_masks(source: str) -> str:
    """The images/ that lies beside masks/, in `source` or in its train/; "" where there is none."""
    for part in (source, os.path.join(source, "train")):
        images, masks = (os.path.join(part, name) for name in ("images", "masks"))
        if os.path.isdir(images) and os.path.isdir(masks):
            return images
    return ""


def _has(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))
