"""Losses of agreeing with a target network: known vectors, and pairs of crops by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslkit.losses.distillation import cosine, pairs_ce, spread


def random(*shape: int, seed: int = 2) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("target", "expected"), [((2.0, 0.0), 0), ((0.0, 0.5), 2), ((-3.0, 0.0), 4)])
def test_distance_of_known_vectors(target: tuple[float, float], expected: float) -> None:
    assert cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([target])).tolist() == [expected]


def test_distance_is_that_of_unit_vectors_and_forgets_lengths() -> None:
    random = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 64, 8, generator=random)
    gap = prediction / prediction.norm(dim=1, keepdim=True) - target / target.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cosine(prediction, target), gap.square().sum(1))
    torch.testing.assert_close(cosine(3 * prediction, target), cosine(prediction, target))
    assert cosine(prediction.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_spread_of_known_vectors() -> None:
    assert spread(torch.ones(5, 8)) == 0
    assert spread(torch.cat([torch.eye(4), -3 * torch.eye(4)])).item() == pytest.approx(1 / 2)
    rows = torch.randn(4096, 256, generator=torch.Generator().manual_seed(0))
    assert spread(rows).item() == pytest.approx(1 / 16, rel=0.01)


def test_a_sure_teacher_and_a_student_that_knows_nothing() -> None:
    logits = torch.zeros(2, 5, 10, dtype=torch.float64)
    logits[:, :, 3] = 1
    nothing = torch.zeros(10, 5, 10, dtype=torch.float64).log_softmax(2)
    loss = pairs_ce(nothing, (logits / 0.04).softmax(2))
    assert loss.item() == pytest.approx(2.302585092994046, abs=1e-9)


@pytest.mark.parametrize(("views", "terms"), [(10, 18), (8, 14), (2, 2)])
def test_the_loss_is_the_mean_over_pairs_of_different_crops(views: int, terms: int) -> None:
    student = random(views, 3, 7).double().log_softmax(2)
    teacher = random(2, 3, 7, seed=3).double().softmax(2)
    pairs = [
        -(teacher[q, image] * student[v, image]).sum()
        for q in range(2)
        for v in range(views)
        if v != q
        for image in range(3)
    ]
    assert len(pairs) == 3 * terms
    assert pairs_ce(student, teacher).item() == pytest.approx(sum(pairs).item() / len(pairs), rel=1e-12)


def test_a_teacher_may_have_seen_any_number_of_crops() -> None:
    """As iBOT and DINOv2 have it with two, BYOL's kind of pair with one."""
    student, teacher = random(4, 3, 7).double().log_softmax(2), random(3, 3, 7, seed=3).double().softmax(2)
    for seen in (1, 2, 3):
        pairs = [
            -(teacher[q, image] * student[v, image]).sum().item()
            for q in range(seen)
            for v in range(4)
            for image in range(3)
            if v != q
        ]
        assert pairs_ce(student, teacher[:seen]).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
