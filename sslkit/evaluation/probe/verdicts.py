"""From predictions to rows and verdicts: every source against each of its baselines, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sslkit.evaluation.metrics.significance import (
    Difference,
    accuracy,
    compared,
    paired,
    paired_over_draws,
)
from sslkit.evaluation.probe.baselines import ProbeRow
from sslkit.evaluation.probe.evaluator import ProbePredictions
from sslkit.evaluation.probe.result import MEASURES, FewRow, Level, Row, Verdict

Predictions = Mapping[str, Tensor]
""" "knn", "linear" → int64 [N], or [S, N] with a row per draw."""


def make_row(entry: ProbeRow, reading: ProbePredictions, labels: Tensor) -> Row:
    """The row of one model after all training images."""
    knn, linear = (accuracy(reading.predictions[name], labels) for name in ("knn", "linear"))
    return Row(
        entry.name,
        entry.kind,
        reading.width,
        entry.one.size,
        *knn,
        *linear,
        strength=reading.head.strength,
        knn_readout=reading.readouts["knn"],
        linear_readout=reading.readouts["linear"],
        predictions=reading.predictions,
    )


def make_level(
    shots: int,
    seeds: Sequence[int],
    entries: Sequence[ProbeRow],
    few: Mapping[str, Predictions],
    labels: Tensor,
) -> Level:
    """few: name of a row → its predictions after `shots` images per class."""
    rows = tuple(_few_row(entry, dict(few[entry.name]), labels) for entry in entries)
    return Level(shots, tuple(seeds), rows, compare_rows(entries, few, labels))


def _few_row(entry: ProbeRow, predictions: dict[str, Tensor], labels: Tensor) -> FewRow:
    (knn, knn_std), (linear, linear_std) = (
        _mean_and_std(predictions[name], labels) for name in ("knn", "linear")
    )
    return FewRow(entry.name, entry.kind, knn, knn_std, linear, linear_std, predictions)


def _mean_and_std(predictions: Tensor, labels: Tensor) -> tuple[float, float | None]:
    """Of the accuracies of the draws, percent; one draw has no deviation."""
    shares = 100 * (predictions == labels).double().mean(1)
    return float(shares.mean()), float(shares.std(correction=1)) if len(shares) > 1 else None


def compare_rows(
    entries: Sequence[ProbeRow], predictions: Mapping[str, Predictions], labels: Tensor
) -> tuple[Verdict, ...]:
    """Every source against each of its baselines by both measures."""
    kinds = {entry.name: entry.kind for entry in entries}
    found = []
    for entry in entries:
        for name in entry.against:
            for measure, attribute in MEASURES.items():
                first, second = (predictions[one][attribute] for one in (entry.name, name))
                difference = (paired if first.ndim == 1 else paired_over_draws)(first, second, labels)
                found.append(make_verdict(entry.name, name, kinds[name], measure, difference))
    return tuple(found)


def make_verdict(source: str, baseline: str, kind: str, measure: str, difference: Difference) -> Verdict:
    """A difference from a baseline of a kind ("random", "pixels", "baseline"), with its sentence."""
    other = {"random": "random weights", "pixels": "raw pixels"}.get(kind, baseline)
    sentence = compared(measure, difference, other)
    return Verdict(source, baseline if kind == "baseline" else kind, measure, difference, sentence)
