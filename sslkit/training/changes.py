"""What has changed between a run's beginning and its resumption: settings and images.

A run keeps the names and sizes of its images in images.jsonl.gz, a few bytes an image, so that a changed
set can be told by name and not only by its fingerprint.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslkit.config import PretrainConfig, flat
from sslkit.data.sources import ImageSet, file_bytes
from sslkit.errors import UserError

LISTING = "images.jsonl.gz"
FIXED = ("method.name", "model.backbone", "model.patch_size", "model.stem", "data.size", "optim.name")
"""Settings that a checkpoint can't follow: they make another network or another optimizer."""
SHOWN = 3

File = tuple[str, int]
"""Absolute name of an image, and `file_bytes` of it."""


def settings_of(config: PretrainConfig) -> dict[str, Any]:
    """Every setting under its dotted key, in values that JSON holds."""
    values: dict[str, Any] = json.loads(json.dumps({"method.name": config.method_name, **flat(config)}))
    return values


def setting_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """ "optim.lr 0.05 → 0.01" for each key that both know and whose value differs.

    Raises:
        UserError: one of those that a checkpoint can't follow has changed.
    """
    changed = [key for key in after if key in before and before[key] != after[key]]
    told = {key: f"{key} {before[key]} → {after[key]}" for key in changed}
    if stuck := [told[key] for key in changed if key in FIXED]:
        raise UserError(
            f"config.toml is another network's than the checkpoint: {', '.join(stuck)}",
            "undo that in config.toml, or begin a new run, with --init if the weights should go on",
        )
    return list(told.values())


def list_images(images: ImageSet, folder: Path) -> None:
    """Write names and sizes of the images into the run's folder."""
    temporary = folder / f".{LISTING}"
    with gzip.open(temporary, "wt", encoding="ascii", compresslevel=6) as file:
        file.writelines(json.dumps(entry) + "\n" for entry in sorted(_files(images)))
    temporary.replace(folder / LISTING)


def image_changes(images: ImageSet, folder: Path) -> str:
    """ "+2 (a.jpg, b.jpg) −1 (c.jpg)" against the run's listing; "" where the run has kept none."""
    try:
        with gzip.open(folder / LISTING, "rt", encoding="ascii") as file:
            before = {(str(name), int(size)) for name, size in map(json.loads, file)}
    except (OSError, ValueError, EOFError):
        return ""
    after = _files(images)
    if len(_relative(before) ^ _relative(after)) < len(before ^ after):  # the folder was moved as well
        before, after = _relative(before), _relative(after)
    return f"{_some('+', after - before)} {_some('−', before - after)}"


def _files(images: ImageSet) -> set[File]:
    return {(path, file_bytes(path)) for path in images.paths}


def _relative(files: set[File]) -> set[File]:
    root = os.path.commonpath([os.path.dirname(name) for name, _ in files]) if files else ""
    return {(name.removeprefix(root).lstrip(os.sep), size) for name, size in files}


def _some(sign: str, files: set[File]) -> str:
    names = sorted(os.path.basename(name) for name, _ in files)
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    return f"{sign}{len(names)}" + (f" ({shown})" if names else "")
