"""Masks and filters against the published numbers, the literal formula, and what must hold for any image."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from frequency_reference import HIGH, LOW, canonical, official_corrupt, official_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from sslkit.frequency import (
    apply_mask,
    band,
    butterworth,
    corrupt,
    disc,
    full_mask,
    gaussian,
    high_pass,
    kept_bins,
    low_pass,
    masked_spectral_loss,
    power_spectrum,
    rhombus,
    spectrum_crop,
    square,
    strongest,
    swap_amplitude,
    symmetrise,
)
from sslkit.frequency.pruned import pruned_for
from sslkit.frequency.transform import irfft2, rfft2

SIZES = [(7, 7), (8, 8), (7, 8), (8, 7), (9, 12), (225, 225), (223, 224), (1, 5), (5, 1), (2, 2)]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def close(got: torch.Tensor, expected: list[float], tolerance: float = 1e-8) -> bool:
    return bool((got.double() - torch.tensor(expected, dtype=torch.float64)).abs().max() < tolerance)


COUNTS = [(224, 16, 793), (224, 8, 193), (224, 32, 3205), (224, 2, 9), (224, 1, 1), (32, 4, 45), (8, 3, 25)]
COUNTS += [(7, 2, 9), (7, 3, 25), (9, 4, 45), (192, 16, 793), (256, 16, 793), (384, 16, 793)]


@pytest.mark.parametrize(("size", "radius", "count"), COUNTS)
def test_disc_keeps_the_published_number_of_bins(size: int, radius: int, count: int) -> None:
    assert kept_bins(disc(size, size, radius), size) == count


def test_other_families_keep_the_published_number_of_bins() -> None:
    assert kept_bins(square(224, 224, 16), 224) == 961
    assert kept_bins(rhombus(224, 224, 16), 224) == 481
    assert kept_bins(band(224, 224, 16, 32), 224) == 2412
    assert kept_bins(~band(224, 224, 16, 32), 224) == 47764


def test_half_plane_stores_each_pair_once() -> None:
    assert [int(disc(n, n, r).sum()) for n, r in [(224, 16), (8, 3), (7, 2)]] == [412, 15, 6]


def test_disc_bits() -> None:
    mask = full_mask(disc(224, 224, 16), 224)
    inside = [(112, 112), (112, 127), (112, 97), (124, 122)]
    outside = [(112, 128), (112, 96), (0, 0)]
    assert all(mask[at] for at in inside)
    assert not any(mask[at] for at in outside)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("radius", [1, 2, 2.29, 3, 16])
def test_disc_is_the_official_mask(height: int, width: int, radius: float) -> None:
    expected = official_mask(height, width, radius)
    assert torch.equal(full_mask(disc(height, width, radius), width).double(), expected)
    assert kept_bins(disc(height, width, radius), width) == expected.sum()


@pytest.mark.parametrize("size", [7, 8, 9, 32])
def test_masks_are_symmetric(size: int) -> None:
    spectrum = symmetrise(torch.rand(size, size, generator=torch.Generator().manual_seed(1)))
    for half in (disc(size, size, 3), square(size, size, 3), rhombus(size, size, 3), spectrum):
        full = torch.fft.ifftshift(full_mask(half, size)).double()
        mirrored = torch.tensor([[full[-u % size, -v % size] for v in range(size)] for u in range(size)])
        assert (full - mirrored).abs().max() < 1e-7


def test_soft_masks() -> None:
    soft = gaussian(32, 32, 4)
    assert soft[0, 0] == 1
    assert soft[0, 4].item() == pytest.approx(math.exp(-0.5))
    assert soft[-4, 0].item() == pytest.approx(math.exp(-0.5))
    assert butterworth(32, 32, 4)[0, 4].item() == pytest.approx(0.5)
    assert butterworth(32, 32, 4, order=2)[0, 8].item() == pytest.approx(1 / 17)


def test_a_lopsided_user_mask_acts_as_its_real_part_on_the_full_plane() -> None:
    images, mask = noise(2, 3, 7, 8), (noise(7, 8, seed=3) > 0.5).double()
    expected = torch.fft.ifft2(torch.fft.fft2(images) * mask).real
    assert (apply_mask(images, symmetrise(mask)) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("shape", [disc, square, rhombus, gaussian, butterworth])
def test_masks_of_many_radii_are_those_of_each(shape: Callable[..., torch.Tensor]) -> None:
    radii = [0.5, 2.0, 3.7]
    many = shape(9, 12, torch.tensor(radii))
    assert many.shape == (3, 1, 9, 7)
    for mask, radius in zip(many, radii, strict=True):
        torch.testing.assert_close(mask[0], shape(9, 12, radius))
    with pytest.raises(ValueError, match=r"radius has shape \(1, 3\), expected one radius per image"):
        shape(9, 12, torch.tensor([radii]))


def test_a_radius_per_image_is_that_radius_for_that_image() -> None:
    images, radii = noise(3, 2, 9, 12), torch.tensor([1.0, 2.5, 4.0])
    keep = torch.tensor([True, False, True])
    got = corrupt(images, keep, radii)
    for k in range(3):
        alone = official_corrupt(images[k : k + 1], keep[k : k + 1], float(radii[k]))
        assert (got[k] - alone[0]).abs().max() < 1e-12


def test_strongest_keeps_the_share_with_most_energy() -> None:
    images = noise(3, 3, 9, 8)
    mask = strongest(images, 0.25)
    power = torch.fft.fft2(images).abs().square().sum(1)
    for k in range(3):
        full = torch.fft.ifftshift(full_mask(mask[k, 0], 8))
        kept = int(full.sum())
        assert 18 <= kept <= 19  # a quarter of 72; a pair goes together
        assert power[k][full].min() > power[k][~full].max()
        assert kept_bins(mask[k, 0], 8) == kept
    assert strongest(images, 1.0).all()


def test_corrupted_canonical_image_has_the_published_values() -> None:
    image = canonical(224)
    low, high = corrupt(image, LOW, 16), corrupt(image, HIGH, 16)
    assert close(low[0, 0, 0, :4], [0.50004869, 0.53508372, 0.56942118, 0.60238251])
    assert close(low[0, 1, 100, 50], [0.39151286])
    assert close(torch.stack([low.min(), low.max()]), [0.248506, 0.751182], 1e-6)
    assert close(high[0, 0, 0, :4], [0.09995131, 0.17823165, 0.14461962, 0.10569900])
    assert close(high[0, 2, 33, 77], [0.05708773])
    assert close(high.mean((0, 2, 3)), [0.04874862, 0.04874803, 0.04874667])
    clipped = (corrupt(image, HIGH, 16, clamp=False) < 0).double().mean()
    assert clipped.item() == pytest.approx(0.4999136, abs=1e-6)


def test_tiny_images_have_the_published_values() -> None:
    image = canonical(8, channels=1)
    high = [0.114429, 0, 0.238741, 0, 0, 0.094868, 0, 0.292608]
    assert close(corrupt(image, LOW, 3)[0, 0, 0, :3], [0.485571, 0.517134, 0.517509], 1e-6)
    assert close(corrupt(image, HIGH, 3)[0, 0, 0], high, 1e-6)
    image = canonical(7, channels=1)
    low = [0.636964, 0.644413, 0.651192, 0.652198, 0.646673, 0.638777, 0.634456]
    assert close(corrupt(image, LOW, 2)[0, 0, 0], low, 1e-6)
    assert close(corrupt(image, HIGH, 2)[0, 0, 0], [0, 0, 0.113528, 0.174509, 0, 0, 0.271776], 1e-6)


def test_single_tones_fall_on_the_right_side_of_a_strict_radius() -> None:
    turn = 2 * math.pi * torch.arange(224, dtype=torch.float64) / 224
    inside = (0.5 + 0.4 * torch.cos(15 * turn)).expand(1, 1, 224, 224)
    on_it = (0.5 + 0.4 * torch.cos(16 * turn)).expand(1, 1, 224, 224)
    assert (corrupt(inside, LOW, 16) - inside).abs().max() < 1e-12
    assert corrupt(inside, HIGH, 16).max() < 1e-12
    assert (corrupt(on_it, LOW, 16) - 0.5).abs().max() < 1e-12
    assert corrupt(on_it, HIGH, 16).max().item() == pytest.approx(0.4)
    assert corrupt(on_it, HIGH, 16).mean().item() == pytest.approx(0.12839883, abs=1e-8)


def test_constant_and_impulse() -> None:
    flat = torch.full((1, 1, 8, 8), 0.7, dtype=torch.float64)
    assert (low_pass(flat, 3) - 0.7).abs().max() < 1e-14
    assert high_pass(flat, 3).abs().max() < 1e-14
    impulse = torch.zeros(1, 1, 224, 224, dtype=torch.float64)
    impulse[0, 0, 112, 112] = 1
    assert low_pass(impulse, 16)[0, 0, 112, 112].item() == pytest.approx(793 / 50176)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("radius", [1, 2, 3, 16])
def test_corrupt_is_the_official_formula_at_any_size(height: int, width: int, radius: int) -> None:
    images, keep = noise(3, 2, height, width), torch.tensor([True, False, True])
    for clamp in (True, False):
        expected = official_corrupt(images, keep, radius, clamp)
        assert (corrupt(images, keep, radius, clamp) - expected).abs().max() < 1e-12


def test_float32_is_within_five_millionths_of_the_official_formula() -> None:
    images, keep = noise(4, 3, 224, 224), torch.tensor([True, False, False, True])
    got = corrupt(images.float(), keep, 16)
    assert got.dtype == torch.float32
    assert (got - official_corrupt(images, keep, 16)).abs().max() < 5e-6


sizes = st.integers(1, 24)


@settings(deadline=None, max_examples=60)
@given(
    sizes, sizes, st.floats(0.1, 30), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64])
)
def test_what_holds_for_any_image(
    height: int, width: int, radius: float, seed: int, dtype: torch.dtype
) -> None:
    images = noise(2, 3, height, width, seed=seed, dtype=dtype)
    small = 1e-5 if dtype == torch.float32 else 1e-12
    low, high = low_pass(images, radius), high_pass(images, radius)
    assert low.dtype == dtype
    assert low.shape == images.shape
    assert (low + high - images).abs().max() < small
    assert high.mean((2, 3)).abs().max() < small
    assert (low_pass(low, radius) - low).abs().max() < small
    assert low_pass(high, radius).abs().max() < small
    energy = low.square().sum() + high.square().sum()  # orthogonal parts: Parseval
    assert abs(energy / images.square().sum() - 1) < small
    assert (low_pass(images.flip(-1), radius) - low.flip(-1)).abs().max() < small
    moved = low_pass(images.roll((1, 2), (-2, -1)), radius)
    assert (moved - low.roll((1, 2), (-2, -1))).abs().max() < small


@pytest.mark.parametrize("size", [8, 64])  # 64: the pruned transform, 8: the FFT
def test_images_of_a_batch_do_not_mix(size: int) -> None:
    images, keep = noise(3, 3, size, size), torch.tensor([True, False, True])
    batch = corrupt(images, keep, 3)
    for k in range(3):
        assert (batch[k] - corrupt(images[k : k + 1], keep[k : k + 1], 3)[0]).abs().max() < 1e-14


@pytest.mark.parametrize("size", [8, 64])
def test_filters_pass_the_gradient_of_a_projection(size: int) -> None:
    images = noise(2, 1, size, size).requires_grad_()
    upstream = noise(2, 1, size, size, seed=5)
    (low_pass(images, 3) * upstream).sum().backward()
    assert images.grad is not None
    assert (images.grad - low_pass(upstream, 3)).abs().max() < 1e-12  # self-adjoint
    assert torch.autograd.gradcheck(
        lambda x: corrupt(x, torch.tensor([True, False]), 2.0, clamp=False),
        noise(2, 1, 5, 6).requires_grad_(),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [12, 64])
def test_low_precision_is_computed_in_float32_even_under_autocast(dtype: torch.dtype, size: int) -> None:
    images, keep = noise(2, 3, size, size).to(dtype), torch.tensor([True, False])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = corrupt(images, keep, 3)
        exact = corrupt(images.float(), keep, 3)
    assert got.dtype == dtype
    assert exact.dtype == torch.float32
    assert torch.equal(got, exact.to(dtype))
    assert (exact - official_corrupt(images.double(), keep, 3)).abs().max() < 2e-6


def test_the_matrix_product_is_used_only_where_it_is_exact() -> None:
    before, images = torch.get_float32_matmul_precision(), noise(2, 3, 64, 64)
    assert pruned_for(images, 3) is not None
    assert pruned_for(images, 20) is None  # too large to be faster
    try:
        torch.set_float32_matmul_precision("high")
        assert pruned_for(images, 3) is None
    finally:
        torch.set_float32_matmul_precision(before)


def test_masks_made_in_inference_mode_serve_training() -> None:
    target = noise(2, 1, 44, 44)
    with torch.inference_mode():
        corrupt(target, torch.tensor([True, False]), 2.75)
        assert not disc(44, 44, 2.75).is_inference()
    prediction = torch.zeros_like(target).requires_grad_()
    masked_spectral_loss(prediction, target, torch.tensor([True, False]), 2.75).backward()
    low_pass(prediction, 2.75).sum().backward()
    assert prediction.grad is not None


def test_an_empty_batch_stays_empty() -> None:
    empty, none = torch.zeros(0, 3, 8, 9), torch.zeros(0, dtype=torch.bool)
    assert corrupt(empty, none, 2).shape == empty.shape
    assert low_pass(empty, 2).shape == high_pass(empty, 2).shape == empty.shape
    assert strongest(empty, 0.5).shape == (0, 1, 8, 5)


def test_the_input_is_left_alone() -> None:
    images = noise(2, 3, 64, 64, dtype=torch.float32)
    copy = images.clone()
    corrupt(images, torch.tensor([True, False]), 3)
    low_pass(images, torch.ones(64, 33))
    assert torch.equal(images, copy)


KEEP = torch.tensor([True, False])
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WRONG = [
    (TypeError, "images is torch.uint8", lambda: low_pass(IMAGES.byte(), 2)),
    (ValueError, r"images has shape \(3, 8, 8\), expected \[B, C, H, W\]", lambda: low_pass(IMAGES[0], 2)),
    (ValueError, "radius is 0, expected > 0", lambda: low_pass(IMAGES, 0)),
    (ValueError, "radius is nan, expected > 0", lambda: low_pass(IMAGES, math.nan)),
    (TypeError, "radius is '16', expected a number", lambda: low_pass(IMAGES, "16")),  # type: ignore[arg-type]
    (
        ValueError,
        r"radius or mask is for \(3, 1\), expected \[2, 1\]",
        lambda: low_pass(IMAGES, torch.ones(3)),
    ),
    (
        ValueError,
        r"mask has shape \(8, 8\), expected \[..., 8, 5\]",
        lambda: apply_mask(IMAGES, torch.ones(8, 8)),
    ),
    (TypeError, "keep_low is torch.int64, expected torch.bool", lambda: corrupt(IMAGES, KEEP.long(), 2)),
    (ValueError, r"keep_low has shape \(1,\), expected \[2\]", lambda: corrupt(IMAGES, KEEP[:1], 2)),
    (ValueError, "band from 4 to 2, expected 0 <= inner < outer", lambda: band(8, 8, 4, 2)),
    (ValueError, "share is 0, expected 0 < share <= 1", lambda: strongest(IMAGES, 0)),
]


@pytest.mark.parametrize(("kind", "message", "call"), WRONG)
def test_errors_name_the_value_and_what_was_expected(kind, message, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(kind, match=message):
        call()


def test_transforms_of_nothing_are_empty() -> None:
    """torch 2.14's MKL refuses them; every function that transforms takes a batch of no images."""
    nothing = torch.zeros(0, 3, 8, 6, requires_grad=True)
    spectrum = rfft2(nothing, "ortho")
    assert (spectrum.shape, spectrum.dtype) == ((0, 3, 8, 4), torch.complex64)
    images = irfft2(spectrum, (8, 6), "ortho")
    images.sum().backward()
    assert (images.shape, images.dtype, nothing.grad is not None) == ((0, 3, 8, 6), torch.float32, True)
    whole = torch.rand(2, 3, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rfft2(whole), torch.fft.rfft2(whole))
    assert torch.allclose(irfft2(rfft2(whole, "ortho"), (8, 7), "ortho"), whole)
    empty, none = nothing.detach(), torch.zeros(0, dtype=torch.bool)
    for result in (
        low_pass(empty, 2),
        high_pass(empty, 2.0),
        low_pass(torch.zeros(0, 3, 64, 64), 4),  # by matrix products
        corrupt(empty, none, 2),
        power_spectrum(empty),
        swap_amplitude(empty, none.long(), 2),
        strongest(empty, 0.5),
        spectrum_crop(empty, 4),
    ):
        assert len(result) == 0
