"""Did it help? Two models on the same images, their difference, its uncertainty, one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Outcome = Literal["better", "worse", "open"]

_Z = 1.96  # the normal distribution's 95 %


@dataclass(frozen=True)
class Difference:
    """Accuracies of two models on the same images, in percent, and what lies between them, in points."""

    first: float
    second: float
    points: float  # first - second
    margin: float  # half the 95 % interval of `points`
    count: int

    @property
    def outcome(self) -> Outcome:
        """ "open" where the interval holds 0."""
        if self.points - self.margin > 0:
            return "better"
        return "worse" if self.points + self.margin < 0 else "open"

    def __str__(self) -> str:
        return f"{self.points:+.1f} ± {self.margin:.1f} points, {self.count} images"


def paired(first: Tensor, second: Tensor, labels: Tensor) -> Difference:
    """Compare two prediction vectors [N] on the same images.

    The interval is the normal approximation over the per-image differences dᵢ ∈ {-1, 0, 1}: images that both
    models get right, or both wrong, carry no uncertainty, which is why pairing tells more than two separate
    intervals. It covers the choice of test images, not that of training seeds.

    Raises:
        ValueError: lengths differ, or fewer than two images.
    """
    count = len(labels)
    if not len(first) == len(second) == count or count < 2:
        raise ValueError(
            f"paired: equal lengths of 2 or more expected, got {len(first)}, {len(second)}, {count}"
        )
    right, other = (first == labels).double(), (second == labels).double()
    difference = right - other
    margin = _Z * float(difference.std(correction=1)) / math.sqrt(count)
    return Difference(
        100 * float(right.mean()),
        100 * float(other.mean()),
        100 * float(difference.mean()),
        100 * margin,
        count,
    )


def accuracy(predictions: Tensor, labels: Tensor) -> tuple[float, float]:
    """Percent right, and half of its 95 % interval (normal approximation)."""
    share = float((predictions == labels).double().mean())
    return 100 * share, 100 * _Z * math.sqrt(share * (1 - share) / len(labels))


def against_random(measure: str, difference: Difference) -> str:
    """The sentence about pre-training itself."""
    claims: dict[Outcome, str] = {
        "better": "pre-training helped",
        "worse": "pre-training did not help",
        "open": "no difference can be claimed",
    }
    return f"{claims[difference.outcome]}: {_compared(measure, difference, 'random weights')}"


def against_pixels(measure: str, difference: Difference) -> str:
    """The sentence about raw pixels, which know nothing."""
    claims: dict[Outcome, str] = {
        "better": "above raw pixels",
        "worse": "below raw pixels, so frozen features are not usable as they are",
        "open": "no difference from raw pixels can be claimed",
    }
    return f"{claims[difference.outcome]}: {_compared(measure, difference, 'raw pixels')}"


def _compared(measure: str, difference: Difference, other: str) -> str:
    return f"{measure} {difference.first:.1f} % against {difference.second:.1f} % for {other} ({difference})"
