"""What probe found: rows, verdicts, the document for programs and the table for people."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sslkit.console import Console
from sslkit.evaluation.verdict import Difference

MEASURES = {"kNN": "knn", "linear": "linear"}
"""What people read → the attribute of a `Row`."""

_NOTE = "masked-image methods read better fine-tuned than frozen; the fair test of one is"


@dataclass(frozen=True)
class Row:
    """One model, or one baseline, in the table. Accuracies and intervals in percent."""

    name: str
    kind: str  # "source", "random", "pixels"
    width: int
    size: int
    knn: float
    knn_interval: float
    linear: float
    linear_interval: float
    strength: float  # of the linear probe's penalty, chosen on training images
    predictions: dict[str, Tensor] = dataclasses.field(repr=False, compare=False)


@dataclass(frozen=True)
class Verdict:
    """One comparison of a source with a baseline by one measure, and its sentence."""

    source: str
    baseline: str
    measure: str
    difference: Difference
    sentence: str


@dataclass(frozen=True)
class ProbeResult:
    """The table, the comparisons behind the verdict, and what was measured on."""

    data: str
    rows: tuple[Row, ...]
    comparisons: tuple[Verdict, ...]
    counts: dict[str, int]  # train, validation, classes, unreadable
    k: int
    seed: int

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The sentences alone."""
        several = len({comparison.source for comparison in self.comparisons}) > 1
        return tuple(f"{c.source}: {c.sentence}" if several else c.sentence for c in self.comparisons)

    def to_document(self) -> dict[str, Any]:
        """Everything but the predictions, for JSON."""
        document = dataclasses.asdict(self)
        for row in document["rows"]:
            del row["predictions"]
        document["verdicts"] = document.pop("comparisons")
        for verdict in document["verdicts"]:
            verdict["outcome"] = Difference(**verdict["difference"]).outcome
        return document


def show(result: ProbeResult, console: Console) -> None:
    """The table, and the command for the fairer test; the verdict itself is the command's result."""
    cells = [
        [
            row.name,
            str(row.width),
            f"{row.knn:.1f} ± {row.knn_interval:.1f}",
            f"{row.linear:.1f} ± {row.linear_interval:.1f}",
        ]
        for row in result.rows
    ]
    console.table(["", "width", "kNN %", "linear %"], cells)
    if result.counts["unreadable"]:
        console.warn(f"{result.counts['unreadable']} images could not be read and are left out")
    for source in dict.fromkeys(verdict.source for verdict in result.comparisons):
        console.say(f"{_NOTE}: {shlex.join(['sslkit', 'finetune', source, result.data])}")
