"""Followers and their schedules against written-out formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sslkit.models.ema import momentum_copy, momentum_update_, rising_momentum, short_run_momentum


def test_a_follower_is_the_running_mean_of_its_leader() -> None:
    leader, follower = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    nn.init.ones_(leader.weight)
    nn.init.zeros_(follower.weight)
    for expected in (0.1, 0.19):
        momentum_update_(follower, leader, 0.9)
        assert follower.weight.tolist() == [pytest.approx([expected] * 2)]
    momentum_update_(follower, leader, 1.0)
    assert follower.weight.tolist() == [pytest.approx([0.19] * 2)]
    momentum_update_(follower, leader, 0.0)
    assert torch.equal(follower.weight, leader.weight)
    assert leader.weight.tolist() == [[1.0, 1.0]]


def test_a_follower_has_no_gradient_and_its_own_statistics() -> None:
    leader = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    follower = momentum_copy(leader)
    assert not any(parameter.requires_grad for parameter in follower.parameters())
    assert all(parameter.requires_grad for parameter in leader.parameters())
    leader(torch.randn(8, 3))
    momentum_update_(follower, leader, 0.5)
    assert not torch.equal(follower[1].running_mean, leader[1].running_mean)


@pytest.mark.parametrize(("start", "middle"), [(0.996, 0.998), (0.99, 0.995)])
def test_momentum_rises_to_one_by_half_a_cosine(start: float, middle: float) -> None:
    assert [rising_momentum(start, step, 100) for step in (0, 50, 100)] == pytest.approx([start, middle, 1.0])
    quarter = 1 - (1 - start) * (1 + math.cos(math.pi / 4)) / 2
    assert rising_momentum(start, 25, 100) == pytest.approx(quarter)


@pytest.mark.parametrize(
    ("steps", "expected"), [(100_000, 0.999), (5000, 0.999), (500, 0.99), (50, 0.9), (5, 0.0), (1, 0.0)]
)
def test_a_short_run_has_less_momentum(steps: int, expected: float) -> None:
    assert short_run_momentum(0.999, steps) == pytest.approx(expected, abs=1e-12)
    kept = short_run_momentum(0.999, steps) ** steps
    assert kept < 0.007  # e⁻⁵ of where it started is left at the end
