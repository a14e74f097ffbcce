"""probe: how good are frozen features, beside random weights and raw pixels, and did pre-training help?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from sslkit.core.config.setting import AUTO
from sslkit.core.console import SILENT, Console, counted
from sslkit.core.device import pick_device, pick_precision
from sslkit.core.errors import UserError
from sslkit.data.loading.workers import reading_workers
from sslkit.data.sources.class_samples import warn_singletons
from sslkit.data.sources.folders import has_masks
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.labels import open_labelled, refuse_empty_folders
from sslkit.data.sources.set_range import with_range
from sslkit.evaluation.dense.dense import check_cells, check_maps, check_mosaics, probe_masks, probe_mosaics
from sslkit.evaluation.probe.baselines import (
    BASELINES,
    ProbeOptions,
    ProbeRow,
    make_rows,
    refuse_ranges,
    shared_range,
)
from sslkit.evaluation.probe.evaluator import ProbeEvaluator, ProbePredictions
from sslkit.evaluation.probe.feature_cache import FeatureCache, cache_folder
from sslkit.evaluation.probe.leaks import Leaks
from sslkit.evaluation.probe.linear_classifier import ProbeClassifier, measure_robustness
from sslkit.evaluation.probe.result import ProbeResult
from sslkit.evaluation.probe.shots import check_shots, parse_shots
from sslkit.evaluation.probe.size_grid import Cell, measure_grid, sizes_around
from sslkit.evaluation.probe.table import leak_warning, show
from sslkit.evaluation.probe.verdicts import compare_rows, make_level, make_row
from sslkit.evaluation.robustness.robustness_result import RobustnessResult
from sslkit.models.weights import load_encoder


def probe(
    sources: Sequence[str],
    data: str,
    *,
    baselines: Sequence[str] = BASELINES,
    readout: str = AUTO,
    shots: str | Sequence[int | str] = (),
    seeds: int = 3,
    exclude_leaks: bool = False,
    grid: bool = False,
    robust: bool = False,
    robust_limit: int = 500,
    attacks: bool | None = None,
    local: bool = False,
    cache: bool = True,
    size: int | None = None,
    k: int = 20,
    device: str = AUTO,
    precision: str = AUTO,
    workers: int | None = None,
    seed: int = 0,
    range: str | Sequence[float] | None = None,
    console: Console = SILENT,
) -> ProbeResult:
    """kNN and a linear probe on frozen features of every source, always beside baselines.

    Args:
        sources: runs, exported folders, .safetensors files, timm/NAME or random/NAME.
        data: labelled images; a validation part, or a fixed fifth of the images, is what is scored.
        baselines: "random" (each source's architecture, weights drawn by `seed`), "pixels" (32 x 32 RGB), or
            any source.
        readout: "mean", "cls", "last4", or "auto": what suits each of kNN and linear on a fifth of training.
        shots: numbers of training images per class, in addition to all.
        seeds: how often those are drawn.
        exclude_leaks: leave out validation images that are exact or near copies of training images.
        grid: also other input sizes and normalisations, of every source.
        robust: also corruptions, filters and single waves, of the linear probes, on `robust_limit` images.
        attacks: with `robust`, also FGSM and PGD; by default on a GPU only, as they take longest.
        local: also the parts of images, by a linear layer on the cells of the last map: on mosaics of the
            photos, or, where `data` has images/ and masks/, linear segmentation of these alone.
        cache: keep features in the user's cache folder, and take what an earlier probe has kept.
        size: side of the views, pixels; by default each source's own.
        k: neighbours.
        workers: processes that read images; by default as many as suit the device.
        range: as `data.range`, for all sources; by default each one's own, or else that of the images.

    Raises:
        UserError: no such source, no labels, a size the model can't take, an unknown baseline.
    """
    few = parse_shots(shots)
    place = pick_device(device)
    exact = pick_precision(precision, place)
    _check(k, robust_limit)
    masked = has_masks(data)
    if masked:
        others = {"--shots": few, "--grid": grid, "--robust": robust, "--exclude-leaks": exclude_leaks}
        _refuse_masks(data, local, others)
    entries = make_rows(sources, ProbeOptions(baselines, readout, size, seed, exact, range), console)
    readers = reading_workers(place.type == "cpu") if workers is None else workers
    if local:
        check_maps(entries)
    if masked:
        check_cells(entries)
        result = probe_masks(data, entries, place, readers, seed, console)
        show(result, console)
        return result
    train, validation = _open(data, console)
    train = with_range(train, shared_range(entries), console)
    validation = replace(validation, range=train.range)
    if flag := "--robust" if robust else "--local" if local else "":
        refuse_ranges(entries, train, flag)
    check_shots(few, seeds, train)
    tilings = check_mosaics(entries, train, validation) if local else ()
    console.say(f"{data}: {len(train)} training and {counted(len(validation), 'validation image')}")
    bench = ProbeEvaluator(
        train,
        validation,
        device=place,
        k=k,
        workers=readers,
        seed=seed,
        seeds=seeds,
        cache=FeatureCache(cache_folder() if cache else None),
        exclude_leaks=exclude_leaks,
        console=console,
    )
    measured = {entry.name: _measure(bench, entry, few) for entry in entries}
    if bench.leaks is not None and bench.leaks.count:
        console.warn(*leak_warning(bench.leaks, data))
    result = _result(data, bench, entries, measured, few)
    if grid:
        result = replace(result, grid=_grid(bench, entries, measured, seed))
    if robust:
        result = replace(result, robustness=_robust(bench, entries, measured, robust_limit, attacks))
    if local:
        result = replace(result, local=probe_mosaics(bench, entries, tilings))
    show(result, console)
    return result


@dataclass(frozen=True)
class _Measured:
    """What was measured of one row."""

    reading: ProbePredictions
    few: dict[int, dict[str, Tensor]]  # shots → predictions, a row per draw


def _check(k: int, robust_limit: int) -> None:
    if k < 1:
        raise UserError(f"k: {k} is not >= 1", "leave it out: the default is 20")
    if robust_limit < 2:
        raise UserError(f"--robust-limit: {robust_limit} is not >= 2", "leave it out: the default is 500")


def _refuse_masks(data: str, local: bool, others: Mapping[str, object]) -> None:
    """Masks are no labels of whole images."""
    if not local:
        raise UserError(f"{data}: images/ and masks/, no classes", "--local probes them cell by cell")
    if flag := next((flag for flag, given in others.items() if given), None):
        raise UserError(f"{flag}: {data} has masks, no classes", f"leave out {flag}")


def _open(data: str, console: Console) -> tuple[ImageSet, ImageSet]:
    """The same refusals as before a fine-tuning: empty class folders, classes that are not in both parts."""
    train, validation = open_labelled(data)
    refuse_empty_folders(data)
    for note in (*train.left_out.lines(), *train.notes, warn_singletons(data, train, validation)):
        if note:
            console.say(note)
    if len(validation) < 2:
        raise UserError(f"{data}: one validation image, two or more expected", "add images of each class")
    return train, validation


def _measure(bench: ProbeEvaluator, entry: ProbeRow, few: Sequence[int]) -> _Measured:
    """Features are freed afterwards: only what was made of them stays."""
    train, validation = bench.features(entry.one)
    return _Measured(
        bench.read(train, validation),
        {shots: bench.few(train, validation, shots) for shots in few},
    )


def _result(
    data: str,
    bench: ProbeEvaluator,
    entries: Sequence[ProbeRow],
    measured: dict[str, _Measured],
    few: Sequence[int],
) -> ProbeResult:
    labels = bench.labels
    draws = range(bench.seed, bench.seed + bench.seeds)
    counts = {
        "train": len(bench.train),
        "validation": len(bench.validation),
        "classes": len(bench.train.classes),
        "unreadable": bench.unreadable,
    }
    return ProbeResult(
        data,
        tuple(make_row(entry, measured[entry.name].reading, labels) for entry in entries),
        compare_rows(entries, {name: one.reading.predictions for name, one in measured.items()}, labels),
        counts,
        bench.k,
        bench.seed,
        levels=tuple(
            make_level(shots, draws, entries, {name: m.few[shots] for name, m in measured.items()}, labels)
            for shots in few
        ),
        leaks=bench.leaks or Leaks((), ()),
    )


def _grid(
    bench: ProbeEvaluator, entries: Sequence[ProbeRow], measured: dict[str, _Measured], seed: int
) -> tuple[Cell, ...]:
    """Of every source."""
    cells = []
    for entry in entries:
        encoder = entry.one.encoder
        if entry.kind == "source" and encoder is not None:
            cells += measure_grid(
                bench,
                entry.name,
                partial(load_encoder, entry.name, seed=seed),
                sizes_around(encoder.size, encoder.stride),
                measured[entry.name].reading.readouts,
                entry.one.precision,
            )
    return tuple(cells)


def _robust(
    bench: ProbeEvaluator,
    entries: Sequence[ProbeRow],
    measured: dict[str, _Measured],
    limit: int,
    attacks: bool | None,
) -> RobustnessResult:
    """Of every row that has an encoder; a source is relative to the first model it is compared with.

    By default that has random weights of its own architecture: one baseline for all sources turned a loss of
    6 points into a gain.
    """
    classifiers = [
        ProbeClassifier(entry.name, entry.one.encoder, reading.readouts["linear"], reading.head)
        for entry, reading in ((entry, measured[entry.name].reading) for entry in entries)
        if entry.one.encoder is not None
    ]
    models = {one.name for one in classifiers}
    baselines = {
        entry.name: other
        for entry in entries
        if (other := next((name for name in entry.against if name in models), None))
    }
    precision = entries[0].one.precision
    return measure_robustness(bench, classifiers, baselines, limit, attacks, precision)
