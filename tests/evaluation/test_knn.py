"""Weighted nearest neighbours against a loop that a reader can follow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslkit.evaluation.probe.knn import choose_knn, knn_predict


def slow(
    train: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, temperature: float
) -> list[int]:
    mean = [sum(column) / len(train) for column in zip(*train.tolist(), strict=True)]

    def unit(vector: list[float]) -> list[float]:
        centred = [value - middle for value, middle in zip(vector, mean, strict=True)]
        length = math.sqrt(sum(value**2 for value in centred))
        return [value / length for value in centred]

    reference = [unit(vector) for vector in train.tolist()]
    found = []
    for query in map(unit, queries.tolist()):
        cosines = [sum(a * b for a, b in zip(query, other, strict=True)) for other in reference]
        votes = [0.0] * classes
        for index in sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]:
            votes[int(labels[index])] += math.exp(cosines[index] / temperature)
        found.append(votes.index(max(votes)))
    return found


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Four classes around their own centres, and a large common part that only centring removes."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=random, dtype=torch.float64)
    labels = torch.arange(60) % 4
    train = centres[labels] + torch.randn(60, 6, generator=random, dtype=torch.float64) + 30
    queries = centres[torch.arange(40) % 4] + torch.randn(40, 6, generator=random, dtype=torch.float64) + 30
    return train, labels, queries


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (60, 0.3)])
def test_as_the_loop(problem: tuple[Tensor, Tensor, Tensor], k: int, temperature: float) -> None:
    train, labels, queries = problem
    found = knn_predict(train, labels, queries, classes=4, k=k, temperature=temperature)
    assert found.tolist() == slow(train, labels, queries, 4, k, temperature)


def test_chunks_change_nothing(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, queries = problem
    whole = knn_predict(train, labels, queries, classes=4)
    assert torch.equal(whole, knn_predict(train, labels, queries, classes=4, chunk=7))


def test_more_neighbours_than_images_means_all(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, queries = problem
    found = knn_predict(train, labels, queries, classes=4, k=1000)
    assert found.tolist() == slow(train, labels, queries, 4, 60, 0.07)


def test_a_shift_of_all_features_changes_nothing(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, queries = problem
    shifted = knn_predict(train + 1000, labels, queries + 1000, classes=4)
    assert torch.equal(shifted, knn_predict(train, labels, queries, classes=4))


def test_the_read_out_is_chosen_among_training_images(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, _ = problem
    noise = torch.randn(60, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert choose_knn({"noise": noise, "good": train, "again": train}, labels, classes=4, k=5) == "good"
