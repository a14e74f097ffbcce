"""Did it help? Two models on the same images, their difference, its uncertainty, one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sslkit.core.console import counted

_Outcome = Literal["better", "worse", "open"]

LEAST = 30
"""Images from which a normal approximation is fair: of fewer that agree it makes an interval of width 0."""
_Z = 1.96  # the normal distribution's 95 %
STUDENT: tuple[float, ...] = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
STUDENT += (2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09)
"""Half the 95 % interval of a mean, in standard errors, for 1 … 19 degrees of freedom."""


@dataclass(frozen=True)
class Difference:
    """Accuracies of two models on the same images, in percent, and what lies between them, in points."""

    first: float
    second: float
    points: float  # first - second
    margin: float  # half the 95 % interval of `points`
    count: int

    @property
    def outcome(self) -> _Outcome:
        """ "open" where the interval holds 0, or is one of too few images."""
        if self.count < LEAST:
            return "open"
        if self.points - self.margin > 0:
            return "better"
        return "worse" if self.points + self.margin < 0 else "open"

    def __str__(self) -> str:
        return f"{self.points:+.1f} ± {self.margin:.1f} points, {of_images(self.count)}"


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
    return paired_over_draws(first[None], second[None], labels)


def paired_over_draws(first: Tensor, second: Tensor, labels: Tensor) -> Difference:
    """Compare predictions [S, N] of two models, each fitted to the same S draws of training images.

    Raises:
        ValueError: as `paired_shares`, or another number of labels.
    """
    if first.shape[-1] != len(labels):
        raise ValueError(f"paired: {first.shape[-1]} predictions, {len(labels)} labels")
    return paired_shares((first == labels).double(), (second == labels).double())


def paired_shares(first: Tensor, second: Tensor) -> Difference:
    """Compare two models by how right they are, in [0, 1], for S draws (or seeds) and N images: [S, N] each.

    Two sources of chance are added as independent ones: which N images are scored (normal approximation over
    the images' mean differences) and which training images were drawn (Student's t over the S differences).
    The variance that belongs to both is counted twice, so the interval is on the wide side.

    Raises:
        ValueError: shapes differ, or more than twenty draws.
    """
    if first.shape != second.shape or len(first) > len(STUDENT) + 1:
        raise ValueError(f"paired: shapes {tuple(first.shape)}, {tuple(second.shape)}")
    difference = first.double() - second.double()
    draws, count = difference.shape
    margin = _Z * float(difference.mean(0).std(correction=1)) / math.sqrt(count)
    if draws > 1:
        spread = STUDENT[draws - 2] * float(difference.mean(1).std(correction=1)) / math.sqrt(draws)
        margin = math.hypot(margin, spread)
    return Difference(
        100 * float(first.double().mean()),
        100 * float(second.double().mean()),
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
    return compared(measure, difference, "random weights")


def compared(measure: str, difference: Difference, other: str) -> str:
    """The sentence about "random weights", "raw pixels" or another model."""
    model: dict[_Outcome, str] = {
        "better": f"better than {other}",
        "worse": f"worse than {other}",
        "open": f"no difference from {other} can be claimed",
    }
    claim = _CLAIMS.get(other, model)[difference.outcome]
    accuracies = f"{difference.first:.1f} % against {difference.second:.1f} % for {other}"
    return f"{claim}: {measure} {accuracies} ({difference})"


def headline(differences: Mapping[str, Difference], name: str = "") -> str:
    """One sentence for all measures against one baseline: random weights, or the model `name`.

    Both measures are always named, so that nobody picks the better one afterwards.
    """
    outcomes = {found.outcome for found in differences.values()}
    by = {
        outcome: " and ".join(measure for measure, found in differences.items() if found.outcome == outcome)
        for outcome in outcomes
    }
    words = _HEADLINE if name else _CLAIMS["random weights"]
    if len(outcomes) == 1:
        claim = words[next(iter(outcomes))]
    else:
        order: tuple[_Outcome, ...] = ("better", "worse", "open")
        claim = ", ".join(f"{words[outcome]} by {by[outcome]}" for outcome in order if outcome in by)
    figures = ", ".join(f"{m} {found.points:+.1f} ± {found.margin:.1f}" for m, found in differences.items())
    count = next(iter(differences.values())).count
    return f"{claim}: {figures} points against {name or 'random weights'} ({of_images(count)})"


_CLAIMS: dict[str, dict[_Outcome, str]] = {
    "random weights": {
        "better": "pre-training helped",
        "worse": "pre-training did not help",
        "open": "no difference can be claimed",
    },
    "raw pixels": {
        "better": "above raw pixels",
        "worse": "below raw pixels, so frozen features are not usable as they are",
        "open": "no difference from raw pixels can be claimed",
    },
}
_HEADLINE: dict[_Outcome, str] = {
    "better": "better",
    "worse": "worse",
    "open": "no difference can be claimed",
}
"""Of another model, which the sentence names at its end."""


def of_images(count: int) -> str:
    """How many images, with a caution where they are too few."""
    return counted(count, "image") + (", too few to claim anything" if count < LEAST else "")
