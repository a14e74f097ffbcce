"""What probe found: rows, verdicts, and the document for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sslkit.core.console import counted
from sslkit.evaluation.metrics.significance import Difference, headline
from sslkit.evaluation.probe.leaks import Leaks
from sslkit.evaluation.probe.size_grid import Cell
from sslkit.evaluation.robustness.robustness_result import RobustnessResult

MEASURES = {"kNN": "knn", "linear": "linear"}
"""What people read → the attribute of a `Row`."""


@dataclass(frozen=True)
class Row:
    """One model, or one baseline, in the table. Accuracies and intervals in percent."""

    name: str
    kind: str  # "source", "random", "pixels", "baseline"
    width: int  # of the linear probe's read-out
    size: int
    knn: float
    knn_interval: float
    linear: float
    linear_interval: float
    strength: float  # of the linear probe's penalty, chosen on training images
    knn_readout: str  # chosen on training images
    linear_readout: str
    predictions: dict[str, Tensor] = dataclasses.field(repr=False, compare=False)


@dataclass(frozen=True)
class FewRow:
    """The same model after few labels: means over the draws and their standard deviations, percent.

    Of one draw there is no deviation.
    """

    name: str
    kind: str
    knn: float
    knn_std: float | None
    linear: float
    linear_std: float | None
    predictions: dict[str, Tensor] = dataclasses.field(repr=False, compare=False)


@dataclass(frozen=True)
class Verdict:
    """One comparison of a source with a baseline by one measure, and its sentence."""

    source: str
    baseline: str  # "random", "pixels", or the name of a model
    measure: str
    difference: Difference
    sentence: str


@dataclass(frozen=True)
class Level:
    """All rows after `shots` training images of each class."""

    shots: int
    seeds: tuple[int, ...]
    rows: tuple[FewRow, ...]
    comparisons: tuple[Verdict, ...]

    @property
    def caution(self) -> str:
        """The interval of one draw covers the choice of test images alone."""
        return "; one draw says nothing of others: --seeds 3" if len(self.seeds) == 1 else ""


@dataclass(frozen=True)
class LocalRow:
    """One model, or raw pixels, with a linear layer on the cells of its map."""

    name: str
    kind: str
    size: int
    grid: int  # cells a side
    width: int
    scores: dict[str, tuple[float, float]]  # measure → percent, half its 95 % interval


@dataclass(frozen=True)
class LocalResult:
    """What is known of the parts of images: of mosaics of labelled photos, or of images with masks."""

    task: str  # "mosaics", "segmentation"
    rows: tuple[LocalRow, ...]
    comparisons: tuple[Verdict, ...]  # by the first measure
    counts: dict[str, int]  # train, validation, classes; of mosaics, or of images with masks
    constant: float  # by the first measure, of naming the most frequent class everywhere, percent

    def to_document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.task,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "verdicts": _verdicts(self.comparisons),
            "counts": self.counts,
            "constant": self.constant,
        }


@dataclass(frozen=True)
class ProbeResult:
    """The table, the comparisons behind the verdict, and what was measured on."""

    data: str
    rows: tuple[Row, ...]
    comparisons: tuple[Verdict, ...]
    counts: dict[str, int]  # train, validation, classes, unreadable
    k: int
    seed: int
    levels: tuple[Level, ...] = ()
    leaks: Leaks = Leaks((), ())  # noqa: RUF009 - frozen
    grid: tuple[Cell, ...] = ()
    robustness: RobustnessResult | None = None
    local: LocalResult | None = None

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The sentence of every comparison."""
        found = self.comparisons + (self.local.comparisons if self.local else ())
        several = len({comparison.source for comparison in found}) > 1
        return tuple(f"{c.source}: {c.sentence}" if several else c.sentence for c in found)

    @property
    def headlines(self) -> tuple[str, ...]:
        """One sentence for each source, and one more for each number of shots."""
        found = _headlines(self.comparisons)
        for level in self.levels:
            images = counted(level.shots, "image")
            found += [
                f"after {images} per class: {headline}{level.caution}"
                for headline in _headlines(level.comparisons)
            ]
        if self.local:
            found += _headlines(self.local.comparisons)
        return tuple(found)

    @property
    def best(self) -> float:
        """The first source's better accuracy, percent."""
        return max(self.rows[0].knn, self.rows[0].linear)

    def to_document(self) -> dict[str, Any]:
        """Everything but the predictions, for JSON."""
        own = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        levels = [
            {
                "shots": level.shots,
                "seeds": list(level.seeds),
                "rows": _rows(level.rows),
                "verdicts": _verdicts(level.comparisons),
            }
            for level in own.pop("levels")
        ]
        return {
            **{name: own[name] for name in ("data", "k", "seed", "counts")},
            "headlines": list(self.headlines),
            "rows": _rows(self.rows),
            "verdicts": _verdicts(self.comparisons),
            "shots": levels,
            "leaks": {"count": self.leaks.count, **dataclasses.asdict(self.leaks)},
            "grid": [dataclasses.asdict(cell) for cell in self.grid],
            "robustness": self.robustness.to_document() if self.robustness else None,
            "local": self.local.to_document() if self.local else None,
        }


def _rows(rows: Sequence[Row | FewRow]) -> list[dict[str, Any]]:
    names = [[item.name for item in dataclasses.fields(row) if item.name != "predictions"] for row in rows]
    return [{name: getattr(row, name) for name in own} for row, own in zip(rows, names, strict=True)]


def _verdicts(comparisons: Sequence[Verdict]) -> list[dict[str, Any]]:
    found = [dataclasses.asdict(comparison) for comparison in comparisons]
    for document, comparison in zip(found, comparisons, strict=True):
        document["outcome"] = comparison.difference.outcome
    return found


def _headlines(comparisons: Sequence[Verdict]) -> list[str]:
    """A sentence per source: against random weights, or, without these, against the first other model."""
    sources = list(dict.fromkeys(comparison.source for comparison in comparisons))
    found = []
    for source in sources:
        own = [comparison for comparison in comparisons if comparison.source == source]
        names = [c.baseline for c in own if c.baseline != "pixels"]
        name = "random" if "random" in names else names[0] if names else "pixels"
        differences = {c.measure: c.difference for c in own if c.baseline == name}
        sentence = headline(differences, {"random": "", "pixels": "raw pixels"}.get(name, name))
        below = [c.measure for c in own if c.baseline == "pixels" and c.difference.outcome == "worse"]
        if below and name != "pixels":
            sentence += f"; below raw pixels by {' and '.join(below)}"
        found.append(f"{source}: {sentence}" if len(sources) > 1 else sentence)
    return found
