"""Degradations, spectra, crops, amplitude swaps and random fields against closed forms and slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from frequency_reference import canonical
from torch import Tensor

from sslkit.frequency import (
    add_noise,
    amplitudes,
    blur,
    low_pass,
    power_spectrum,
    radial_profile,
    random_field,
    spectrum_crop,
    super_resolution,
    swap_amplitude,
)

STYLE = torch.tensor([1, 0])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, expected: list[float], tolerance: float = 1.1e-8) -> bool:
    return bool((got.double() - torch.tensor(expected, dtype=torch.float64)).abs().max() < tolerance)


def test_super_resolution_has_the_published_values() -> None:
    got = super_resolution(canonical(224))
    assert close(got[0, 0, 0, :3], [0.71609891, 0.71478827, 0.71816833])
    assert close(got[0, 1, 100, 50], [0.22131581])
    assert close(got[0, 2, 33, 77], [0.60531109])
    assert close(got.mean((0, 2, 3)), [0.50004215, 0.50001426, 0.49997980])


def test_super_resolution_samples_with_the_four_bicubic_taps() -> None:
    """Down by 8 is a stride-8 filter of four taps on pixels 8 i + 2 … 8 i + 5: antialiasing uses more."""
    image = canonical(64)
    taps = torch.tensor([-3, 19, 19, -3], dtype=torch.float64) / 32
    kernel = torch.zeros(8, dtype=torch.float64)
    kernel[2:6] = taps
    small = F.conv2d(image, torch.outer(kernel, kernel).expand(3, 1, 8, 8), stride=8, groups=3).clamp(0, 1)
    up = F.interpolate(small, size=(64, 64), mode="bicubic", align_corners=False).clamp(0, 1)
    assert (super_resolution(image) - up).abs().max() < 1e-12


def test_blur_has_the_published_values() -> None:
    image = canonical(224)
    small, large = blur(image, torch.tensor([7])), blur(image, torch.tensor([21]))
    assert close(small[0, 0, 0, :3], [0.69063496, 0.69679264, 0.70960731])
    assert close(small[0, 1, 100, 50], [0.33936331])
    assert close(small[0, 2, 33, 77], [0.44423061])
    assert close(large[0, 0, 0, :3], [0.69462284, 0.69596373, 0.69968246])
    assert close(large[0, 1, 100, 50], [0.45798866])


@pytest.mark.parametrize(("height", "width"), [(12, 15), (4, 3), (1, 5)])
def test_blur_is_a_mirrored_convolution_image_by_image(height: int, width: int) -> None:
    images, sizes = noise(3, 2, height, width), [7, 1, 21]
    got = blur(images, torch.tensor(sizes))
    for image, size, blurred in zip(images, sizes, got, strict=True):
        reach = size // 2
        taps = {d: math.exp(-d * d / 50) for d in range(-reach, reach + 1)}
        total = sum(taps.values())
        for y in range(height):
            x = (y * 2 + 1) % width
            expected = sum(
                wy * wx / total**2 * image[:, mirror(y + dy, height), mirror(x + dx, width)]
                for dy, wy in taps.items()
                for dx, wx in taps.items()
            )
            assert (blurred[:, y, x] - expected).abs().max() < 1e-12


def mirror(position: int, length: int) -> int:
    while length > 1 and not 0 <= position < length:
        position = -position if position < 0 else 2 * (length - 1) - position
    return 0 if length == 1 else position


def test_blur_keeps_constants_and_spreads_as_published() -> None:
    assert (blur(torch.full((2, 1, 30, 30), 0.3), torch.tensor([7, 21])) - 0.3).abs().max() < 1e-6
    impulse = torch.zeros(2, 1, 41, 41, dtype=torch.float64)
    impulse[:, :, 20, 20] = 1
    response = blur(impulse, torch.tensor([7, 21]))
    assert close(response[:, 0, 20, 20], [0.02383578, 0.00684234])
    offset = torch.arange(41) - 20.0
    spread = (response.sum((1, 2)) * offset**2).sum(1).sqrt()
    assert close(spread, [1.94, 4.50], 0.01)


def test_noise_is_strong_independent_and_unclamped() -> None:
    image = canonical(224)
    draw = torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = add_noise(image, draw)
    assert close((got - image).std((0, 2, 3)), [75 / 255] * 3, 4e-3)  # four standard errors
    assert torch.corrcoef((got - image)[0].flatten(1)).triu(1).abs().max() < 0.02
    assert got.min() < 0
    assert got.max() > 1


def test_power_spectrum_is_the_centred_square_of_the_dft() -> None:
    for height, width in ((7, 8), (8, 7), (1, 5), (6, 6)):
        images = noise(2, 3, height, width)
        expected = torch.fft.fftshift(torch.fft.fft2(images, norm="ortho"), dim=(-2, -1)).abs().square()
        assert (power_spectrum(images) - expected).abs().max() < 1e-12
        assert power_spectrum(images).sum().item() == pytest.approx(images.square().sum().item())  # Parseval


def test_radial_profile_averages_rings() -> None:
    power = noise(2, 9, 8)
    got = radial_profile(power)
    assert got.shape == (2, 5)
    for ring in range(5):
        members = [
            power[:, y, x]
            for y in range(9)
            for x in range(8)
            if ring**2 <= (y - 4) ** 2 + (x - 4) ** 2 < (ring + 1) ** 2
        ]
        assert (got[:, ring] - torch.stack(members).mean(0)).abs().max() < 1e-12


def test_a_low_passed_image_has_exactly_the_rings_below_the_radius() -> None:
    profile = radial_profile(power_spectrum(low_pass(noise(1, 1, 32, 32), 5)))[0, 0]
    assert (profile[:5] > 1e-3).all()
    assert (profile[5:] < 1e-20).all()


def tone(cycles: int, length: int, offset: float) -> Tensor:
    position = (torch.arange(length, dtype=torch.float64) + offset) / length
    return torch.cos(2 * math.pi * cycles * position).expand(1, 1, length, length)


@pytest.mark.parametrize(("align", "offset"), [("center", 0.5), ("corner", 0.0)])
def test_spectrum_crop_of_tones(align, offset) -> None:  # type: ignore[no-untyped-def]
    for cycles in (0, 3, 79):
        expected = tone(cycles, 160, offset)
        assert (spectrum_crop(tone(cycles, 224, offset), 160, align) - expected).abs().max() < 1e-12
    assert spectrum_crop(tone(81, 224, offset), 160, align).abs().max() < 1e-12


def test_spectrum_crop_halves_nyquist_when_aligned_to_corners() -> None:
    alternating = (0.5 * (-1.0) ** torch.arange(160).double()).expand(1, 1, 160, 160)
    assert (spectrum_crop(tone(80, 224, 0), 160, "corner") - alternating).abs().max() < 1e-12


def test_spectrum_crop_is_the_inverse_fft_of_the_cut_spectrum() -> None:
    images = noise(2, 1, 24, 24)
    spectrum = torch.fft.rfft2(images)
    rows = [
        spectrum[..., :4, :],
        (spectrum[..., 4:5, :] + spectrum[..., -4:-3, :]) / 2,
        spectrum[..., -3:, :],
    ]
    expected = torch.fft.irfft2(torch.cat(rows, -2)[..., :5], s=(8, 8)) * (8 / 24) ** 2
    assert (spectrum_crop(images, 8, "corner") - expected).abs().max() < 1e-12


def test_spectrum_crop_invariants() -> None:
    images = noise(2, 3, 40, 41)
    small = spectrum_crop(images, 17)
    assert (small.mean((2, 3)) - images.mean((2, 3))).abs().max() < 1e-12
    assert (spectrum_crop(images.flip(-1), 16) - spectrum_crop(images, 16).flip(-1)).abs().max() < 1e-12
    square = noise(1, 1, 40, 40)
    assert (spectrum_crop(square, 40) - square).abs().max() < 1e-12
    twice = spectrum_crop(spectrum_crop(square, 31), 21)
    assert (twice - spectrum_crop(square, 21)).abs().max() < 1e-12
    assert spectrum_crop(images.bfloat16(), 16).dtype == torch.bfloat16


def test_swapped_amplitudes_are_the_style_image_s_and_phases_stay() -> None:
    images, style = noise(3, 2, 9, 8), torch.tensor([1, 1, 1])
    got, before = torch.fft.fft2(swap_amplitude(images, style, 3)), torch.fft.fft2(images)
    ky = torch.fft.fftfreq(9, 1 / 9).round().abs()[:, None]
    kx = torch.fft.fftfreq(8, 1 / 8).round().abs()
    inside = (ky < 3) & (kx < 3)
    expected = torch.where(inside, before.abs()[style], before.abs()) * torch.exp(1j * before.angle())
    assert (got - expected).abs().max() < 1e-10
    assert (swap_amplitude(images, torch.arange(3), 3) - images).abs().max() < 1e-12
    flat = torch.full((2, 1, 8, 8), 0.5).requires_grad_()
    swapped = swap_amplitude(torch.cat([flat, torch.rand(1, 1, 8, 8)]), torch.tensor([2, 2, 2]), 3)
    (gradient,) = torch.autograd.grad(swapped.sum(), flat)
    assert gradient.isfinite().all()


def test_amplitudes_may_be_given_and_radii_differ_by_image() -> None:
    images, style = noise(3, 2, 9, 8), torch.tensor([1, 2, 0])
    expected = torch.cat([swap_amplitude(images, style, 1.0 + n)[n : n + 1] for n in range(3)])
    assert (swap_amplitude(images, style, torch.tensor([1.0, 2.0, 3.0])) - expected).abs().max() < 1e-12
    given = amplitudes(images)
    assert (given - torch.fft.fft2(images).abs()[..., :5]).abs().max() < 1e-12
    assert torch.equal(swap_amplitude(images, given[style], 3), swap_amplitude(images, style, 3))
    one = swap_amplitude(images, given[1:2], torch.tensor([3.0]))
    assert torch.equal(one, swap_amplitude(images, torch.tensor([1, 1, 1]), 3))
    none = images[:0]
    assert swap_amplitude(none, given[1:2], 3).shape == none.shape
    assert amplitudes(none).shape == (0, 2, 9, 5)


@pytest.mark.parametrize("function", [lambda x: low_pass(x, 12.0), lambda x: swap_amplitude(x, STYLE, 3.0)])
def test_the_gradient_of_a_sum_is_that_of_any_other_sum(function: Callable[[Tensor], Tensor]) -> None:
    """It is one number in memory, seen many times, of which torch 2.6 takes no transform."""
    images = torch.rand(2, 1, 32, 32).requires_grad_()
    (summed,) = torch.autograd.grad(function(images).sum(), images)
    (weighted,) = torch.autograd.grad((function(images) * torch.ones(2, 1, 32, 32)).sum(), images)
    assert torch.equal(summed, weighted)


def test_a_spectrum_of_expanded_images() -> None:
    row = torch.rand(2, 3, 1, 32)
    expanded = row.expand(2, 3, 32, 32)
    assert torch.equal(power_spectrum(expanded), power_spectrum(expanded.clone()))


def test_random_fields_have_unit_variance_zero_mean_and_the_given_spectrum() -> None:
    draw = torch.randn(4000, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fields = random_field(draw, 32)
    assert fields.shape == (4000, 32, 32)
    assert fields.var().item() == pytest.approx(1, abs=0.02)
    assert fields.var(0).min() > 0.9
    assert fields.var(0).max() < 1.1
    assert fields.mean((1, 2)).abs().max() < 1e-12
    power = torch.fft.fft2(fields).abs().square().mean(0)
    assert (power[1, 0] / power[2, 0]).item() == pytest.approx(4, rel=0.1)  # |k|^-2
    assert (power[0, 1] / power[0, 4]).item() == pytest.approx(16, rel=0.15)
    assert power[5:28].max() < 1e-12
    assert power[4, 4] < 1e-12  # beyond the disc


def test_empty_batches_stay_empty() -> None:
    empty, none = torch.zeros(0, 3, 16, 16), torch.zeros(0, dtype=torch.int64)
    assert (
        super_resolution(empty).shape
        == blur(empty, none).shape
        == add_noise(empty, empty).shape
        == empty.shape
    )
    assert swap_amplitude(empty, none, 2).shape == power_spectrum(empty).shape == empty.shape
    assert spectrum_crop(empty, 8).shape == (0, 3, 8, 8)
    assert radial_profile(power_spectrum(empty)).shape == (0, 3, 9)
    assert random_field(torch.zeros(0, 5, 9, 9), 16).shape == (0, 5, 16, 16)


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
WRONG = [
    ("factor is 17, expected 1 to 16", lambda: super_resolution(IMAGES, 17)),
    ("kernel_size is 8, expected odd, 1 to 21", lambda: blur(IMAGES, torch.tensor([7, 8]))),
    ("kernel_size is torch.float32", lambda: blur(IMAGES, torch.tensor([7.0, 9.0]))),
    (r"noise has shape \(1, 3, 16, 16\)", lambda: add_noise(IMAGES, IMAGES[:1])),
    ("size is 17, expected 1 to 16", lambda: spectrum_crop(IMAGES, 17)),
    ("align is 'left', expected", lambda: spectrum_crop(IMAGES, 8, "left")),  # type: ignore[arg-type]
    (
        r"style is torch.int64 \(1,\), expected int64 \[2\]",
        lambda: swap_amplitude(IMAGES, torch.tensor([0]), 2),
    ),
    (r"style is torch.float32 \(1, 3, 16, 8\)", lambda: swap_amplitude(IMAGES, torch.rand(1, 3, 16, 8), 2)),
    (r"noise has shape \(8, 8\), expected", lambda: random_field(IMAGES[0, 0, :8, :8], 32)),
    ("size is 8, expected more than 8", lambda: random_field(torch.zeros(9, 9), 8)),
    (r"power has shape \(3,\)", lambda: radial_profile(torch.zeros(3))),
]


@pytest.mark.parametrize(("message", "call"), WRONG)
def test_errors_name_the_value_and_what_was_expected(message, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
