"""Patches of an image, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslkit.losses.targets import patch_statistics, patches, patchify, unpatchify


def random(*shape: int, seed: int = 2) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_patchify_has_the_card_s_order_and_an_inverse() -> None:
    image = torch.arange(48.0).reshape(1, 3, 4, 4)
    cells = patchify(image, 2)
    assert cells.shape == (1, 4, 12)
    assert cells[0, 0].tolist() == [0, 16, 32, 1, 17, 33, 4, 20, 36, 5, 21, 37]
    assert cells[0, 1, :3].tolist() == [2, 18, 34]  # the next patch of the row
    assert torch.equal(unpatchify(cells, 2), image)
    wide = random(2, 3, 8, 24)
    assert torch.equal(unpatchify(patchify(wide, 4), 2), wide)


def test_deviation_is_the_unbiased_one_with_the_official_epsilon() -> None:
    cells = random(2, 5, 12)
    mean, deviation = patch_statistics(cells)
    for picture in range(2):
        for place in range(5):
            values = cells[picture, place].tolist()
            average = sum(values) / 12
            variance = sum((value - average) ** 2 for value in values) / 11
            assert mean[picture, place].item() == pytest.approx(average, rel=1e-5)
            assert deviation[picture, place].item() == pytest.approx(math.sqrt(variance + 1e-6), rel=1e-5)
    assert patch_statistics(torch.ones(1, 1, 12))[1].item() == pytest.approx(1e-3)


def test_normalised_patches_have_mean_0_and_variance_1() -> None:
    images = random(2, 3, 8, 12)
    plain, normalised = patches(images, 4, normalised=False), patches(images, 4, normalised=True)
    assert torch.equal(plain, patchify(images, 4))
    assert normalised.shape == (2, 6, 48)
    assert normalised.mean(-1).abs().max() < 1e-5
    assert (normalised.var(-1) - 1).abs().max() < 1e-3
