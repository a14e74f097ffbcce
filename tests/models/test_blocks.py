"""Heads, followers and schedules against written-out formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sslkit.models.blocks import (
    BatchNorm1d,
    PixelDecoder,
    mlp,
    momentum_copy,
    momentum_update_,
    rising_momentum,
)


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_decoder_is_its_convolution_and_pixel_shuffle(layout: torch.memory_format) -> None:
    decoder = PixelDecoder(5, 4)
    convolution, shuffle = decoder
    features = torch.randn(2, 5, 2, 3).to(memory_format=layout).requires_grad_()
    sources = [features, *decoder.parameters()]
    ours, expected = decoder(features), shuffle(convolution(features))
    torch.testing.assert_close(ours, expected)
    slope = torch.randn(2, 3, 8, 12)
    for got, wanted in zip(
        torch.autograd.grad(ours, sources, slope), torch.autograd.grad(expected, sources, slope), strict=True
    ):
        torch.testing.assert_close(got, wanted)
    assert [*decoder.state_dict()] == ["0.weight", "0.bias"]


@pytest.mark.parametrize(("start", "middle"), [(0.996, 0.998), (0.99, 0.995)])
def test_momentum_rises_to_one_by_half_a_cosine(start: float, middle: float) -> None:
    assert [rising_momentum(start, step, 100) for step in (0, 50, 100)] == pytest.approx([start, middle, 1.0])
    quarter = 1 - (1 - start) * (1 + math.cos(math.pi / 4)) / 2
    assert rising_momentum(start, 25, 100) == pytest.approx(quarter)


def test_mlp_has_norm_and_activation_between_its_layers() -> None:
    kinds = [type(layer).__name__ for layer in mlp([4, 5, 6, 7], batch_norm=True)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [tuple(p.shape) for p in mlp([4, 5, 6], batch_norm=True).parameters()] == [
        (5, 4), (5,), (5,), (6, 5), (6,),
    ]  # fmt: skip
    plain = mlp([4, 5, 6], batch_norm=False, activation=nn.GELU)
    assert [type(layer).__name__ for layer in plain] == ["Linear", "GELU", "Linear"]
    assert plain[0].bias is not None


def test_batch_norm_of_one_process_is_torch_s() -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = BatchNorm1d(4), nn.BatchNorm1d(4)
    assert torch.equal(ours(rows), theirs(rows))
    assert torch.equal(ours.eval()(rows), theirs.eval()(rows))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
