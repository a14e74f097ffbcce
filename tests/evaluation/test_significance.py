"""Paired differences against their closed form, and the sentences people read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslkit.evaluation.metrics.significance import (
    Difference,
    accuracy,
    against_random,
    compared,
    headline,
    paired,
    paired_over_draws,
)


def predictions(both: int, first: int, second: int, neither: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two prediction vectors with so many images right by both, one, the other, none. All labels are 0."""
    right = torch.zeros(both + first + second + neither, dtype=torch.int64)
    one, other = right.clone(), right.clone()
    one[both + first :] = 1
    other[both : both + first] = 1
    other[both + first + second :] = 1
    return one, other, right


@pytest.mark.parametrize("table", [(100, 60, 20, 161), (0, 5, 5, 0), (10, 0, 0, 10), (7, 1, 0, 2)])
def test_the_interval_is_that_of_discordant_pairs(table: tuple[int, int, int, int]) -> None:
    """Var(d) = (b + c - (b - c)² / n) / (n - 1) for b and c discordant pairs (as in McNemar's test)."""
    both, b, c, _ = table
    count = sum(table)
    found = paired(*predictions(*table))
    assert found.points == pytest.approx(100 * (b - c) / count)
    assert found.first == pytest.approx(100 * (both + b) / count)
    assert found.second == pytest.approx(100 * (both + c) / count)
    variance = (b + c - (b - c) ** 2 / count) / (count - 1)
    assert found.margin == pytest.approx(196 * math.sqrt(variance / count))


def test_agreement_carries_no_uncertainty() -> None:
    """The same difference is surer when the rest agrees: what two separate intervals can't see."""
    agreeing, disagreeing = paired(*predictions(80, 10, 0, 10)), paired(*predictions(40, 30, 20, 10))
    assert agreeing.margin < disagreeing.margin


@pytest.mark.parametrize(
    ("table", "outcome", "start"),
    [
        ((100, 60, 20, 161), "better", "pre-training helped: kNN 46.9 % against 35.2 % for random weights"),
        ((100, 20, 60, 161), "worse", "pre-training did not help: kNN 35.2 % against 46.9 %"),
        ((100, 21, 20, 200), "open", "no difference can be claimed: kNN"),
        ((10, 0, 0, 10), "open", "no difference can be claimed: kNN"),
    ],
)
def test_sentences(table: tuple[int, int, int, int], outcome: str, start: str) -> None:
    found = paired(*predictions(*table))
    assert found.outcome == outcome
    assert against_random("kNN", found).startswith(start)


def test_the_sentence_holds_difference_interval_and_count() -> None:
    sentence = against_random("kNN", paired(*predictions(100, 60, 20, 161)))
    assert sentence.endswith("(+11.7 ± 5.0 points, 341 images)")


def test_below_pixels_is_said() -> None:
    below, above = (paired(*predictions(100, *counts, 161)) for counts in ((20, 60), (60, 20)))
    assert compared("linear", below, "raw pixels").startswith("below raw pixels")
    assert compared("linear", above, "raw pixels").startswith("above raw pixels")


def test_accuracy_and_its_interval() -> None:
    share, margin = accuracy(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1, 0]))
    assert share == 75
    assert margin == pytest.approx(196 * math.sqrt(0.75 * 0.25 / 4))


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        paired(torch.zeros(3), torch.zeros(2), torch.zeros(3))


def test_draws_widen_the_interval() -> None:
    """Three draws whose differences are 0.5, 0.25 and 0: t(2) · s / √3 beside what the images give."""
    labels = torch.zeros(4, dtype=torch.int64)
    first = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]])
    second = torch.tensor([[0, 0, 1, 1]] * 3)
    found = paired_over_draws(first, second, labels)
    assert found.points == pytest.approx(25)
    images = torch.tensor([0, 0, 2 / 3, 1 / 3]).double().std(correction=1) * 1.96 / 2
    draws = 4.30 * 0.25 / math.sqrt(3)
    assert found.margin == pytest.approx(100 * math.hypot(float(images), draws))
    one = paired_over_draws(first[:1], second[:1], labels)
    assert one == paired(first[0], second[0], labels)


def difference(points: float) -> Difference:
    return Difference(50 + points, 50, points, 1.0, 100)


@pytest.mark.parametrize(
    ("knn", "linear", "claim"),
    [
        (5, 4, "pre-training helped: kNN +5.0 ± 1.0, linear +4.0 ± 1.0 points against random weights (100"),
        (-5, -4, "pre-training did not help: "),
        (0.5, -0.5, "no difference can be claimed: "),
        (5, 0.5, "pre-training helped by kNN, no difference can be claimed by linear: "),
        (-5, 5, "pre-training helped by linear, pre-training did not help by kNN: "),
    ],
)
def test_one_sentence_for_both_measures(knn: float, linear: float, claim: str) -> None:
    assert headline({"kNN": difference(knn), "linear": difference(linear)}).startswith(claim)


def test_another_model_has_no_pre_training_to_judge() -> None:
    found = headline({"kNN": difference(5), "linear": difference(5)}, "timm/resnet50")
    assert found.startswith("better: ")
    assert found.endswith("against timm/resnet50 (100 images)")


@pytest.mark.parametrize(("count", "outcome"), [(4, "open"), (29, "open"), (30, "better")])
def test_few_images_claim_nothing(count: int, outcome: str) -> None:
    """All of them right against none: the normal approximation has an interval of width 0."""
    found = paired(*predictions(0, count, 0, 0))
    assert (found.points, found.margin, found.outcome) == (100, 0, outcome)
    said = f"{count} images, too few to claim anything)"
    for sentence in (against_random("kNN", found), headline({"kNN": found, "linear": found})):
        assert sentence.startswith("no difference can be claimed: ") == (outcome == "open")
        assert sentence.endswith(said) == (outcome == "open")
