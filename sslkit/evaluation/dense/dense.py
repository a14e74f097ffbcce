"""Dense probe: what a frozen encoder knows of each part of an image, beside random weights and raw pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sslkit.core import rng
from sslkit.core.console import Console, counted
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.set_range import with_range
from sslkit.evaluation.dense.cells import (
    Reader,
    Scenes,
    Tally,
    between,
    cell_logits,
    constant_logits,
    fit_cells,
    last_map,
    raw_patches,
)
from sslkit.evaluation.dense.mosaics import LEAST_PHOTOS, Mosaics, tilings_of
from sslkit.evaluation.dense.segmentation import open_masks
from sslkit.evaluation.probe.baselines import ProbeRow, refuse_ranges, shared_range
from sslkit.evaluation.probe.evaluator import ProbeEvaluator
from sslkit.evaluation.probe.result import LocalResult, LocalRow, ProbeResult, Verdict
from sslkit.evaluation.probe.verdicts import make_verdict
from sslkit.models.encoder import Encoder, require_maps

PHOTOS = (2000, 1000)
"""Training and validation photos that are tiled, at most."""
MASKS = (1000, 500)
"""Training and validation images with masks, at most."""


class _Task(Protocol):
    """Images whose cells have classes."""

    @property
    def name(self) -> str: ...

    @property
    def measures(self) -> tuple[str, ...]:
        """Of the tallies; the first one is what is compared."""

    @property
    def classes(self) -> int: ...

    def scenes(self, size: int, grid: int) -> tuple[Scenes, Scenes]:
        """Training and validation images for an encoder of this size, whose map is grid x grid."""

    def tallies(self, scenes: Scenes, logits: Tensor) -> tuple[Tally, ...]:
        """The tallies of logits [M, g², C]."""


@dataclass(frozen=True)
class _Line:
    """A row to be measured."""

    name: str
    kind: str
    size: int
    grid: int
    reader: Reader


def check_maps(entries: Sequence[ProbeRow]) -> None:
    """Refuse an encoder without maps.

    Raises:
        UserError: such an encoder.
    """
    for encoder in _encoders(entries):
        require_maps(encoder)


def check_cells(entries: Sequence[ProbeRow]) -> None:
    """Refuse a map of one cell, which has no parts of the image.

    Raises:
        UserError: such an encoder.
    """
    for encoder in _encoders(entries):
        if encoder.map_shape[1] < 2:
            problem = f"--local: {encoder.name} makes one cell of {encoder.size} px, 2 x 2 expected"
            raise UserError(problem, f"try --size {3 * encoder.stride}")


def check_mosaics(entries: Sequence[ProbeRow], training: ImageSet, validation: ImageSet) -> tuple[int, ...]:
    """The tilings that every encoder's map has cells for.

    Raises:
        UserError: there is none, or a part is too small for two mosaics.
    """
    for name, images in (("training", training), ("validation", validation)):
        if len(images) < LEAST_PHOTOS:
            few = counted(len(images), f"{name} image")
            problem = f"{images.name}: {few}, --local needs {LEAST_PHOTOS} of them"
            raise UserError(problem, "add images to that part, or leave out --local")
    found = {encoder: tilings_of(encoder.size, encoder.map_shape[1]) for encoder in _encoders(entries)}
    for encoder, tilings in found.items():
        if not tilings:
            side = encoder.map_shape[1]
            problem = f"--local: {encoder.name} makes {side} x {side} cells of {encoder.size} px"
            raise UserError(f"{problem}, too few for mosaics", f"try --size {3 * encoder.stride}")
    return tuple(sorted(set.intersection(*map(set, found.values()))))


def _encoders(entries: Sequence[ProbeRow]) -> list[Encoder]:
    return [entry.one.encoder for entry in entries if entry.one.encoder is not None]


def probe_mosaics(
    bench: ProbeEvaluator, entries: Sequence[ProbeRow], tilings: tuple[int, ...]
) -> LocalResult:
    """Which photo does a patch belong to? Of the photos' classes, on mosaics of them."""
    parts = (bench.train, bench.scored)
    training, validation = (
        images.subset(rng.sample(len(images), limit, bench.seed))
        for images, limit in zip(parts, PHOTOS, strict=True)
    )
    task = Mosaics(training, validation, tilings, bench.workers, bench.seed)
    return measure_local(task, entries, bench.device, bench.seed, bench.console)


def probe_masks(
    data: str, entries: Sequence[ProbeRow], device: torch.device, workers: int, seed: int, console: Console
) -> ProbeResult:
    """Linear segmentation of images that have masks: there is nothing else to probe on them."""
    task = open_masks(data, MASKS, workers, seed, console)
    training = with_range(task.training.images, shared_range(entries), console)
    refuse_ranges(entries, training, "--local")
    task = task.by(training.range)
    counts = {"train": len(task.training.masks), "validation": len(task.validation.masks)}
    console.say(f"{data}: {counts['train']} training and {counts['validation']} validation images with masks")
    local = measure_local(task, entries, device, seed, console)
    unreadable = sum(counts.values()) - local.counts["train"] - local.counts["validation"]
    counts |= {"classes": task.classes, "unreadable": unreadable}
    return ProbeResult(data, (), (), counts, 0, seed, local=local)


def measure_local(
    task: _Task, entries: Sequence[ProbeRow], device: torch.device, seed: int, console: Console
) -> LocalResult:
    """Every row on the same images, with a linear layer on its cells; sources compared with baselines."""
    rows, tallies = [], {}
    made: dict[tuple[int, int], tuple[Scenes, Scenes]] = {}
    for line in _lines(entries, device):
        console.say(f"{task.name}: {line.name}")
        key = line.size, line.grid
        if key not in made:
            made = {key: task.scenes(*key)}  # those of one size at a time: rows are in that order
        training, validation = made[key]
        head = fit_cells(line.reader, training, task.classes, seed)
        found = task.tallies(validation, cell_logits(line.reader, validation, head))
        if line.reader.encoder is not None:
            line.reader.encoder.cpu()
        tallies[line.name] = found[0]
        scores = {
            measure: (tally.value, tally.interval(seed))
            for measure, tally in zip(task.measures, found, strict=True)
        }
        rows.append(LocalRow(line.name, line.kind, line.size, line.grid, len(head.mean), scores))
    order = {name: place for place, name in enumerate(_names(entries))}
    constant = task.tallies(validation, constant_logits(training, validation, task.classes))[0].value
    counts = {"train": len(training.images), "validation": len(validation.images), "classes": task.classes}
    return LocalResult(
        task.name,
        tuple(sorted(rows, key=lambda row: order[row.name])),
        tuple(_verdicts(task.measures[0], entries, tallies, seed)),
        counts,
        constant,
    )


def _lines(entries: Sequence[ProbeRow], device: torch.device) -> list[_Line]:
    """Rows with an encoder, and raw pixels of the cells of each source; those of one size together."""
    lines: dict[str, _Line] = {}
    pixels = any(entry.kind == "pixels" for entry in entries)
    for entry in entries:
        encoder = entry.one.encoder
        if encoder is None:
            continue
        size, grid = encoder.size, encoder.map_shape[1]
        reader = Reader(last_map(encoder), encoder, device, entry.one.precision)
        lines[entry.name] = _Line(entry.name, entry.kind, size, grid, reader)
        if pixels and entry.kind == "source":
            name = _pixel_name(encoder)
            lines[name] = _Line(
                name, "pixels", size, grid, Reader(raw_patches(grid), None, device, "float32")
            )
    return sorted(lines.values(), key=lambda line: (line.size, line.grid))


def _pixel_name(encoder: Encoder) -> str:
    return f"raw pixels, cells of {encoder.stride} px at {encoder.size}"


def _names(entries: Sequence[ProbeRow]) -> Iterator[str]:
    """As in the table of whole images: sources, baselines, raw pixels."""
    yield from (entry.name for entry in entries if entry.one.encoder is not None)
    yield from dict.fromkeys(_pixel_name(encoder) for encoder in _encoders(entries))


def _verdicts(
    measure: str, entries: Sequence[ProbeRow], tallies: dict[str, Tally], seed: int
) -> Iterator[Verdict]:
    kinds = {entry.name: entry.kind for entry in entries}
    for entry in entries:
        for name in entry.against:
            encoder = entry.one.encoder
            own = _pixel_name(encoder) if kinds[name] == "pixels" and encoder is not None else name
            difference = between(tallies[entry.name], tallies[own], seed)
            yield make_verdict(entry.name, name, kinds[name], measure, difference)
