"""What has changed between a run's beginning and its resumption: settings and images.

A run keeps the names and sizes of its images in images.jsonl.gz, a few bytes an image, so that a changed
set can be told by name and not only by its fingerprint.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.core.config.build import flat
from sslkit.core.console import Console
from sslkit.core.distributed import processes
from sslkit.core.errors import UserError
from sslkit.core.files import replacing
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.names import common_folder
from sslkit.training.run import checkpoint
from sslkit.training.run.folder import RunFolder

LISTING = "images.jsonl.gz"
FIXED = (
    "method.name",
    "model.backbone",
    "model.patch_size",
    "model.heads",
    "model.stem",
    "data.size",
    "optim.name",
)
"""Settings that a checkpoint can't follow: they make another network or another optimizer."""
FREE = ("run.devices",)
"""Settings that every resumption may choose anew."""
_SHOWN = 3

File = tuple[str, int]
"""Absolute name of an image, and `file_bytes` of it."""


def settings_of(config: Any) -> dict[str, Any]:
    """Every setting of a PretrainConfig or FinetuneConfig under its dotted key, in values that JSON holds."""
    name = {"method.name": config.method_name} if hasattr(config, "method_name") else {}
    values: dict[str, Any] = json.loads(json.dumps({**name, **flat(config)}))
    return values


def newest_state(run: RunFolder, config: Any, console: Console) -> tuple[Path | None, dict[str, Any]]:
    """The newest whole checkpoint and its state.json, or (None, {}).

    Says which checkpoints were damaged, and which settings of `config` have changed since.
    """
    found, notices = processes.run_on_first(lambda: checkpoint.newest(run.path / "checkpoints"))
    for notice in notices:
        console.warn(notice)
    state = checkpoint.read_state(found) if found else {}
    for change in setting_changes(state.get("config", {}), settings_of(config)):
        console.warn(f"config.toml has changed since step {state['step']}: {change}")
    return found, state


def setting_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """ "optim.lr 0.05 → 0.01" for each key that both know and whose value differs.

    Raises:
        UserError: one of those that a checkpoint can't follow has changed.
    """
    known = [key for key in after if key in before and key not in FREE]
    changed = [key for key in known if before[key] != after[key]]
    told = {key: f"{key} {before[key]} → {after[key]}" for key in changed}
    if stuck := [told[key] for key in changed if key in FIXED]:
        raise UserError(
            f"config.toml is another network's than the checkpoint: {', '.join(stuck)}",
            "undo that in config.toml, or begin a new run"
            + (", with --init if the weights should go on" if "model.init" in after else ""),
        )
    return list(told.values())


def list_images(images: ImageSet, folder: Path) -> None:
    """Write names and sizes of the images into the run's folder."""
    with (
        replacing(folder / LISTING) as unfinished,
        gzip.open(unfinished, "wt", encoding="ascii", compresslevel=6) as file,
    ):
        file.writelines(json.dumps(entry) + "\n" for entry in _files(images))


def image_changes(images: ImageSet, folder: Path) -> str:
    """ "+2 (a.jpg, b.jpg) −1 (c.jpg)" against the run's listing; "" where the run has kept none."""
    before, after = _Files(lambda: _listed(folder)), _Files(lambda: _files(images))
    try:
        moved = before.relative(), after.relative()
        if _differing(*moved) < _differing(before, after):  # the folder was moved as well
            before, after = moved
        return f"{_some('+', after.without(before))} {_some('−', before.without(after))}"
    except (OSError, ValueError, EOFError):
        return ""


class _Files:
    """Files that are walked through again and again: a million are not held, but 64 bits of each.

    Args:
        files: begins a walk; the names lose `root` where they begin with it.
    """

    def __init__(self, files: Callable[[], Iterator[File]], root: str = "") -> None:
        self.files, self.root = files, root

    def relative(self) -> _Files:
        """The same by their names below the folder that holds all."""
        return _Files(self.files, os.fsdecode(common_folder(os.fsencode(name) for name, _ in self.files())))

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """A digest of each file's name and size; one mistake is likely at some billions of files."""
        return np.fromiter((self._key(*file) for file in self.files()), np.uint64)

    def _key(self, name: str, size: int) -> int:
        told = os.fsencode(name.removeprefix(self.root)) + b"\0%d" % size
        return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")

    def without(self, other: _Files) -> list[str]:
        """Names, without their folders, of what the other lacks."""
        missing = ~np.isin(self.keys, other.keys)
        return [os.path.basename(name) for name, _ in compress(self.files(), missing)]


def _differing(first: _Files, second: _Files) -> int:
    return len(np.setxor1d(first.keys, second.keys))


def _files(images: ImageSet) -> Iterator[File]:
    return zip(images.paths, images.sizes.tolist(), strict=True)


def _listed(folder: Path) -> Iterator[File]:
    with gzip.open(folder / LISTING, "rt", encoding="ascii") as file:
        for name, size in map(json.loads, file):
            yield str(name), int(size)


def _some(sign: str, names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"{sign}{len(names)}" + (f" ({shown})" if names else "")
