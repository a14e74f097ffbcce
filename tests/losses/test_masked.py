"""Errors on what was hidden, by hand."""

from __future__ import annotations

import pytest
import torch

from sslkit.losses.masked import masked_l1, masked_mean, masked_mse


def test_the_loss_is_the_mean_over_hidden_patches() -> None:
    target = torch.tensor([[[1.0, 1], [2, 2], [3, 3], [4, 4]]])
    hidden = torch.tensor([[False, True, False, True]])
    assert masked_mse(torch.zeros_like(target), target, hidden).item() == 10.0
    garbage = torch.where(hidden[..., None], target, 1e6)
    assert masked_mse(garbage, target, hidden).item() == 0.0


def test_the_loss_is_the_mean_over_hidden_pixels() -> None:
    image, hidden = torch.ones(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    hidden[..., 1:3, 1:3] = True
    assert masked_l1(0 * image, image, hidden).item() == pytest.approx(0.9999975, abs=1e-7)
    garbage = torch.where(hidden, image, 1e6)
    assert masked_l1(garbage, image, hidden).item() == 0.0


def test_hidden_values_have_the_mean_of_a_loop() -> None:
    values = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    hidden = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    picked = [values[row, column].item() for row, column in hidden.nonzero().tolist()]
    assert 5 < len(picked) < 30
    assert masked_mean(values, hidden).item() == pytest.approx(sum(picked) / len(picked), rel=1e-6)


def test_the_difference_is_float32_under_autocast() -> None:
    target, hidden = torch.full((1, 2, 3), 1.001), torch.ones(1, 2, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_mse(torch.ones(1, 2, 3, dtype=torch.bfloat16), target, hidden)
    assert loss.item() == pytest.approx(1e-6, rel=1e-3)
