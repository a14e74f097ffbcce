"""Contrastive losses of known vectors, against the papers' numbers and literal loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.losses.contrastive import batch_logits, first_is_right, queue_logits

# ------------------------------------------------------------------------------------------- in the batch


def batch_loss(vectors: Tensor, temperature: float) -> float:
    return F.cross_entropy(*batch_logits(vectors, temperature)).item()


def literal_loss(vectors: Tensor, temperature: float) -> float:
    """The paper's algorithm 1: every pair by hand."""
    unit = [(row / row.norm()).tolist() for row in vectors.double()]
    count, total = len(unit), 0.0
    for i in range(count):
        partner = (i + count // 2) % count
        terms = [
            math.exp(sum(a * b for a, b in zip(unit[i], unit[k], strict=True)) / temperature)
            for k in range(count)
            if k != i
        ]
        positive = sum(a * b for a, b in zip(unit[i], unit[partner], strict=True)) / temperature
        total += math.log(sum(terms)) - positive
    return total / count


@pytest.mark.parametrize(("batch", "expected"), [(8, 2.70805), (256, 6.23637)])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equal_vectors_cost_the_logarithm_of_their_number(
    batch: int, expected: float, temperature: float
) -> None:
    assert batch_loss(torch.ones(2 * batch, 3), temperature) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 6.354e-4), (0.2, 0.0901435), (0.5, 1.062879)])
def test_perfect_pairs_cost_what_the_card_says(temperature: float, expected: float) -> None:
    vectors = torch.eye(8).repeat(2, 1)
    assert batch_loss(vectors, temperature) == pytest.approx(expected, rel=1e-4)
    logits, partner = batch_logits(vectors, temperature)
    assert (logits.argmax(1) == partner).all()


def test_sixteen_orthogonal_vectors_are_guessing() -> None:
    assert batch_loss(torch.eye(16), 0.1) == pytest.approx(math.log(15), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_loss_is_the_paper_s_double_loop(temperature: float) -> None:
    vectors = torch.randn(14, 5, generator=torch.Generator().manual_seed(0))
    expected = literal_loss(vectors, temperature)
    assert batch_loss(vectors, temperature) == pytest.approx(expected, rel=1e-5)
    assert batch_loss(7 * vectors, temperature) == pytest.approx(expected, rel=1e-5)  # only directions count
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    moved = torch.cat([vectors[:7][order], vectors[7:][order]])
    assert batch_loss(moved, temperature) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_turns_a_vector_and_does_not_stretch_it() -> None:
    vectors = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    F.cross_entropy(*batch_logits(vectors, 0.2)).backward()
    assert vectors.grad is not None
    assert (vectors.grad * vectors).sum(1).abs().max() < 1e-6
    assert vectors.grad.norm(dim=1).min() > 1e-3


def test_half_precision_vectors_are_compared_in_float32() -> None:
    vectors = torch.eye(8).repeat(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = batch_logits(vectors.bfloat16(), 0.05)
    assert logits.dtype == torch.float32
    assert logits[0, 8].item() == pytest.approx(20)
    assert batch_loss(vectors.half(), 0.5) == pytest.approx(1.062879, rel=1e-4)


# -------------------------------------------------------------------------------------- against a queue


def unit(count: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def queue_loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> float:
    logits = queue_logits(query, key, queue, temperature)
    # In float64: added one by one to 1, thousands of small terms are rounded away.
    return F.cross_entropy(logits.double(), torch.zeros(len(logits), dtype=torch.int64)).item()


@pytest.mark.parametrize(("size", "expected"), [(4096, 8.318010), (65536, 11.090370)])
def test_equal_logits_cost_the_logarithm_of_their_number(size: int, expected: float) -> None:
    queue = torch.zeros(size, 4)
    assert queue_loss(torch.eye(4), torch.zeros(4, 4), queue, 0.2) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("size", "temperature", "expected"),
    [
        (4096, 0.07, 0.00255622),
        (4096, 0.2, 3.353359),
        (65536, 0.07, 0.0401355),
        (65536, 0.2, 6.092617),
    ],
)
def test_a_perfect_model_still_pays_for_a_long_queue(size: int, temperature: float, expected: float) -> None:
    axes = torch.eye(5)
    loss = queue_loss(axes[:4], axes[:4], axes[4:].expand(size, 5), temperature)
    assert loss == pytest.approx(expected, rel=3e-6)


@pytest.mark.parametrize("temperature", [0.2, 0.07])
def test_random_vectors_cost_what_a_gaussian_predicts(temperature: float) -> None:
    """log K + 1 / (2 d T²): the queue's exponentials have the mean of a log-normal."""
    size, width = 16384, 128
    loss = queue_loss(unit(512, width, 1), unit(512, width, 2), unit(size, width, 3), temperature)
    assert loss == pytest.approx(math.log(size) + 1 / (2 * width * temperature**2), abs=0.15)


def test_a_query_s_length_does_not_matter() -> None:
    query, key, queue = unit(4, 8, 1), unit(4, 8, 2), unit(16, 8, 3)
    torch.testing.assert_close(queue_logits(3 * query, key, queue, 0.2), queue_logits(query, key, queue, 0.2))


def test_logits_of_a_queue_stay_in_float32_under_autocast() -> None:
    query, key, queue = unit(4, 8, 1), unit(4, 8, 2), unit(16, 8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = queue_logits(query, key, queue, 0.2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, 1:], (query.double() @ queue.double().T / 0.2).float())


def test_what_is_found_is_counted_as_a_loop_counts() -> None:
    logits = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    logits[3, 5] = logits[3, 0]  # as near as the key: not found
    found = first_is_right(logits)
    better = [sum(other >= row[0] for other in row[1:]) for row in logits.tolist()]
    terms = [math.log(sum(map(math.exp, row))) - row[0] for row in logits.double().tolist()]
    assert found["loss"].item() == pytest.approx(sum(terms) / 40, rel=1e-5)
    assert found["chance"].item() == pytest.approx(sum(terms) / 40 / math.log(9), rel=1e-5)
    assert found["accuracy"].item() == pytest.approx(sum(count < 1 for count in better) / 40)
    assert found["accuracy_5"].item() == pytest.approx(sum(count < 5 for count in better) / 40)
    assert 0 < found["accuracy"] < found["accuracy_5"] < 1
