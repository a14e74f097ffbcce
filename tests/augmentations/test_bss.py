"""Batch Styles Standardization: amplitudes become those of one image, phases stay."""

from __future__ import annotations

import math

import pytest
import torch
from around import At, inside, made, photos
from torch import Tensor

from sslkit.augmentations.batch.bss import reach_of, style_of
from sslkit.frequency import amplitudes, swap_amplitude
from sslkit.losses.contrastive import batch_logits


def standardised(images: Tensor, style: int, reach: int) -> Tensor:
    """BSS of one style image, without clamp."""
    return swap_amplitude(images, amplitudes(images[style : style + 1]), torch.full((1,), reach + 1.0))


def test_the_style_image_stays() -> None:
    images = photos(5)
    assert (standardised(images, 2, 7)[2] - images[2]).abs().max() < 1e-12
    assert (standardised(images.float(), 2, 7)[2] - images[2]).abs().max() < 1e-6


@pytest.mark.parametrize("reach", [0, 3, 16])
def test_amplitudes_are_one_inside_and_own_ones_outside(reach: int) -> None:
    """Against the polar form, over the full plane: angle and modulus, not a gain."""
    images = photos(5)
    got, before = torch.fft.fft2(standardised(images, 1, reach)), torch.fft.fft2(images)
    window = inside(32, reach)
    polar = torch.polar(torch.where(window, before.abs()[1], before.abs()), before.angle())
    assert (got - polar).abs().max() < 1e-9
    power = got.abs()[..., window]
    assert (power.var(0) / power.mean(0).square()).max() < 1e-10
    if not window.all():
        outside = (got.abs() - before.abs())[..., ~window]
        assert outside.abs().max() / before.abs().max() < 1e-10


def test_the_whole_spectrum_leaves_phases_only() -> None:
    images = photos(4).float()
    got, before = torch.fft.fft2(standardised(images, 0, 16)), torch.fft.fft2(images)
    assert (got.abs() / before.abs()[0] - 1).abs().max() < 1e-3
    turned = (got * before.conj()).angle().abs()
    assert turned.max() < 1e-3


def test_no_frequency_but_zero_is_a_shift_of_the_means() -> None:
    images = photos(4)
    got = standardised(images, 3, 0)
    assert (got.mean((2, 3)) - images[3].mean((1, 2))).abs().max() < 1e-12
    assert (got - images).flatten(2).std(2).max() < 1e-12


def test_twice_is_once_and_flat_images_have_gradients() -> None:
    images = photos(4)
    once = standardised(images, 1, 5)
    assert (standardised(once, 1, 5) - once).abs().max() < 1e-9
    flat = torch.full((2, 3, 16, 16), 0.5).requires_grad_()
    standardised(torch.cat([flat, torch.rand(1, 3, 16, 16)]), 2, 4).square().sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("side", [31, 32, 96, 224])
def test_the_square_has_the_share_of_the_spectrum(side: int) -> None:
    for share in (1e-6, 0.01, 0.05, 0.3, 0.9):
        reach = reach_of(share, side)
        sides = [2 * other + 1 for other in range(side // 2 + 1)]
        assert 2 * reach + 1 == min(sides, key=lambda one: (abs(one - math.sqrt(share) * side), -one))
    assert reach_of(1.0, side) == side // 2  # everything, the Nyquist frequency of even sides too
    if side == 32:
        assert reach_of(0.01, side) == 1  # nine bins, as published


def test_a_view_has_one_style_that_is_one_of_its_images() -> None:
    """By the whole augmentation, images far from black and white, so that nothing is clamped."""
    images = photos(6).float()
    augment = made("bss", radius=[0.3, 0.3])
    styles = []
    for step in range(30):
        after = augment({"first": images, "second": images}, torch.arange(6), At(step=step))
        for view in after.values():
            means = view.mean((2, 3))
            assert means.std(0).max() < 1e-3
            styles.append(int((images.mean((2, 3)) - means[0]).abs().sum(1).argmin()))
            assert (view[styles[-1]] - images[styles[-1]]).abs().max() < 1e-5
    assert set(styles) == set(range(6))
    assert styles[::2] != styles[1::2]  # another one in each view
    assert torch.equal(style_of(images, 0.999), amplitudes(images)[5:])


def test_squares_are_drawn_between_their_bounds() -> None:
    """The reach is found again: up to there, and no further, all images have one amplitude."""
    images, reaches = photos(6).float(), []
    augment = made("bss", radius=[0.01, 0.25])
    for step in range(40):
        view = augment({"first": images}, torch.arange(6), At(step=step))["first"]
        power = torch.fft.fft2(view.double()).abs()
        alike = (power.std(0) / power.mean(0)).amax(0)[0, :17] < 1e-3
        reaches.append(int((~alike).nonzero()[0]) - 1)
    assert {2, 3, 4, 5, 6, 7} <= set(reaches) <= set(range(1, 8))  # √area · 16, rounded down


def test_a_jitter_is_one_for_a_view() -> None:
    images = torch.rand(1, 3, 16, 16).expand(4, 3, 16, 16).contiguous()
    after = made("bss", strength=1, radius=[1e-6, 1e-6])({"first": images}, torch.tensor([9, 1, 4, 2]), At())
    assert (after["first"] - after["first"][:1]).abs().max() < 1e-5
    assert (after["first"] - images).abs().max() > 0.02


def test_no_share_of_the_batches_is_none() -> None:
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(made("bss", share=0)({"first": images}, torch.arange(4), At())["first"], images)
    quarter = made("bss", share=0.25)
    changed = [
        not torch.equal(quarter({"a": images}, torch.arange(4), At(step))["a"], images) for step in range(200)
    ]
    assert 30 < sum(changed) < 70


def test_negatives_of_the_same_view_are_fewer() -> None:
    """N = 4 orthogonal images, equal in both views, temperature 1: log(1 + 3 / e) = .7437 for a view's own
    negatives, log(1 + 6 / e) = 1.1654 for those of both.
    """
    logits, partner = batch_logits(torch.eye(4).repeat(2, 1), 1.0)
    loss = torch.nn.functional.cross_entropy(logits, partner)
    assert loss.item() == pytest.approx(math.log(1 + 6 / math.e), abs=1e-5)
    other = torch.arange(8)[:, None] // 4 != torch.arange(8) // 4
    other[torch.arange(8), partner] = False
    loss = torch.nn.functional.cross_entropy(logits.masked_fill(other, -torch.inf), partner)
    assert loss.item() == pytest.approx(0.7437, abs=5e-5)
