"""Fourier augmentation: means of amplitudes with another image's, phases stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from around import At, inside, made, photos

from sslkit.augmentations.batch.fourier import partners


def test_partners_are_all_others_and_never_oneself() -> None:
    draw = torch.linspace(0, 1 - 2**-24, 5000)
    drawn = partners(draw)
    assert (drawn != torch.arange(5000)).all()
    few = torch.stack([partners(torch.full((5,), value)) for value in (0.0, 0.3, 0.6, 1 - 2**-24)])
    for image, others in enumerate(few.T.tolist()):
        assert sorted(others) == [other for other in range(5) if other != image]


@pytest.mark.parametrize(
    ("weight", "area", "reach"), [((0.0, 1.0), 1.0, 16), ((1.0, 1.0), 0.05, 3), ((0.25, 0.25), 0.3, 8)]
)
def test_amplitudes_are_means_with_another_image_s(weight: Any, area: float, reach: int) -> None:
    """FACT's equation 4 by moduli and angles; each image's partner and weight are found by search."""
    images = photos(6).float()
    augment = made("fourier", weight=list(weight), radius=[area, area])
    after = augment({"first": images}, torch.arange(6), At())["first"].double()
    before, window, weights = torch.fft.fft2(images.double()), inside(32, reach), []
    for number, got in enumerate(torch.fft.fft2(after)):
        own, found = before[number].abs(), {}
        for other in set(range(6)) - {number}:
            share = ((got.abs() - own) / (before[other].abs() - own))[:, 0, 0].mean()
            mixed = torch.where(window, torch.lerp(own, before[other].abs(), share), own)
            error = (got - torch.polar(mixed, before[number].angle())).abs().max()
            found[float(error)] = float(share)
        assert min(found) < 5e-3  # of amplitudes up to 600, float32
        weights.append(found[min(found)])
    assert weight[0] - 1e-3 < min(weights) <= max(weights) < weight[1] + 1e-3
    assert weight[0] == weight[1] or max(weights) - min(weights) > 0.4


def test_shares_of_the_images_are_changed() -> None:
    images = torch.rand(200, 3, 8, 8)
    after = made("fourier", share=0.25)({"first": images}, torch.arange(200), At())["first"]
    changed = (after - images).abs().amax((1, 2, 3)) > 0
    assert 25 < changed.sum() < 75
    assert torch.equal(after[~changed], images[~changed])
    assert torch.equal(made("fourier", share=0)({"first": images}, torch.arange(200), At())["first"], images)
