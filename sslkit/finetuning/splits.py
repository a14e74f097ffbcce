"""Which labelled images a fine-tuning uses, and for what: drawn class by class, written to splits.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sslkit.core.errors import UserError
from sslkit.core.value_range import Range
from sslkit.data.sources.class_samples import count_per_class, sample_per_class, warn_singletons
from sslkit.data.sources.folders import has_masks
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.labels import open_labelled, refuse_empty_folders
from sslkit.finetuning.config import FinetuneConfig

_HELD_OUT = 0.2
"""Share of the training images on which `--keep best` compares the epochs."""


@dataclass(frozen=True)
class Splits:
    """The images of one fine-tuning; all parts have the same `classes`."""

    training: ImageSet
    validation: ImageSet  # looked at once, after the last epoch
    held_out: ImageSet | None  # taken from training, to choose the best epoch
    unused: ImageSet | None  # what shots or share left out
    notes: tuple[str, ...] = ()  # what people should know

    def by(self, range: Range) -> Splits:
        """The same images, read by this range."""
        training, validation, held_out, unused = (
            None if part is None else replace(part, range=range)
            for part in (self.training, self.validation, self.held_out, self.unused)
        )
        assert training is not None
        assert validation is not None
        return Splits(training, validation, held_out, unused, self.notes)


def open_splits(config: FinetuneConfig) -> Splits:
    """All images of `data.source`, each in its part.

    Where the data has no validation part, that depends on `data.split_seed` alone; what is drawn from the
    training images depends on `run.seed`. Fewer shots are a subset of more.

    Raises:
        UserError: no labels, a class without images, or one that only training has.
    """
    source, seed = config.data.source, config.run.seed
    if has_masks(source):
        raise UserError(f"{source}: images/ and masks/, no classes", "sslkit probe --local measures on masks")
    training, validation = open_labelled(source, config.data.split_seed)
    refuse_empty_folders(source)
    notes = [*training.notes, warn_singletons(source, training, validation)]
    unused = held_out = None
    if config.data.shots or config.data.share < 1:
        notes.append(_few(training, config.data.shots))
        training, unused = sample_per_class(training, lambda count: _wanted(config, count), seed, "shots")
    if config.run.keep == "best":
        training, held_out = sample_per_class(training, _stays, seed, "held out")
        if not len(held_out):
            raise UserError(
                "--keep best needs two training images of a class at least",
                "leave it out: the last epoch is kept",
            )
    return Splits(training, validation, held_out, unused, tuple(filter(None, notes)))


def write_splits(path: Path, parts: Splits) -> None:
    """path,label,split,use of every image. The file is DATA itself, with the same validation part."""
    named: list[tuple[str, ImageSet | None]] = [
        ("train", parts.training),
        ("held out", parts.held_out),
        ("unused", parts.unused),
        ("validation", parts.validation),
    ]
    rows = [
        (name, images.classes[label], "validation" if use == "validation" else "train", use)
        for use, images in named
        if images is not None
        for name, label in zip(images.paths, images.labels or (), strict=True)
    ]
    write_table(path, ["path", "label", "split", "use"], sorted(rows))


def write_table(path: Path, header: list[str], rows: Iterable[Iterable[object]]) -> None:
    """A .csv file; bytes of a file name that are not UTF-8 stay what they are."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


def _wanted(config: FinetuneConfig, count: int) -> int:
    """Training images of a class of `count`; at least one."""
    return config.data.shots or max(1, round(config.data.share * count))


def _stays(count: int) -> int:
    """Training images of a class of `count` that are not held out; one image stays."""
    return count - (max(1, round(_HELD_OUT * count)) if count > 1 else 0)


def _few(training: ImageSet, shots: int) -> str:
    short = [
        (found, name)
        for found, name in zip(count_per_class(training), training.classes, strict=True)
        if found < shots
    ]
    if not short:
        return ""
    least, name = min(short)
    some = f"{len(short)} of {len(training.classes)} classes have"
    return f"{some} fewer than {shots} training images; {name!r} has {least}"
