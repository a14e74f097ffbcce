"""Common corruptions: published strengths measured, closed forms, slow loops; keyed, and alone in a batch."""

from __future__ import annotations

import colorsys
import math
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sslkit.augmentations.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, common_corruption
from sslkit.augmentations.corruptions.blur import (
    correlate,
    disc_kernel,
    enlarged,
    gaussian_matrix,
    glass_blur,
    trail_kernels,
)
from sslkit.augmentations.corruptions.draws import Draws
from sslkit.augmentations.corruptions.severity import CIFAR_10_C, IMAGENET_C, parameters
from sslkit.augmentations.corruptions.weather import frost_pictures, plasma

TABLES = {224: IMAGENET_C, 32: CIFAR_10_C}


def pictures(count: int, side: int) -> Tensor:
    """Smooth colours with grain, whole numbers of 1/255."""
    random = torch.Generator().manual_seed(side)
    coarse = torch.rand(count, 3, 5, 5, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    noise = 0.05 * torch.randn(count, 3, side, side, generator=random)
    return ((smooth + noise).clamp(0, 1) * 255).round() / 255


def grey(side: int, value: float, count: int = 2) -> Tensor:
    return torch.full((count, 3, side, side), value)


def corrupted(images: Tensor, name: str, severity: int) -> Tensor:
    return common_corruption(images, torch.arange(len(images)), name, severity)


# ------------------------------------------------------------------------------------------- all fifteen


def test_fifteen_corruptions_in_four_groups() -> None:
    assert len(CORRUPTIONS) == len(set(CORRUPTIONS)) == 15
    assert [len(names) for names in GROUPS.values()] == [3, 4, 4, 4]
    for table in TABLES.values():
        assert set(table) == set(CORRUPTIONS)
        assert all(len(severities) == 5 for severities in table.values())


@pytest.mark.parametrize("side", [32, 48])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_batch(name: str, side: int) -> None:
    images, index = pictures(3, side), torch.tensor([7, 123_456_789, 7])
    together = common_corruption(images, index, name, 3, seed=4)
    assert together.shape == images.shape
    assert together.dtype == torch.float32
    assert 0 <= float(together.min()) <= float(together.max()) <= 1
    for number in range(3):
        alone = common_corruption(images[number : number + 1], index[number : number + 1], name, 3, seed=4)
        assert torch.allclose(alone[0], together[number], atol=1e-5)
    again = common_corruption((images * 255).byte(), index, name, 3, seed=4)
    assert torch.allclose(again, together, atol=1e-5)


RANDOM = [
    n for n in CORRUPTIONS if n not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate")
]


@pytest.mark.parametrize("name", [name for name in RANDOM if name != "jpeg_compression"])
def test_another_index_seed_or_severity_draws_anew(name: str) -> None:
    image = pictures(1, 32)

    def corrupt(index: int, seed: int) -> Tensor:
        return common_corruption(image, torch.tensor([index]), name, 5, seed)

    assert torch.equal(corrupt(1, 0), corrupt(1, 0))
    assert not torch.equal(corrupt(1, 0), corrupt(2, 0))
    assert not torch.equal(corrupt(1, 0), corrupt(1, 1))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur"])
@pytest.mark.parametrize("side", [32, 96])
def test_a_higher_severity_changes_more(name: str, side: int) -> None:
    images = pictures(4, side)
    changes = [float((corrupted(images, name, s) - images).square().mean()) for s in SEVERITIES]
    assert changes == sorted(changes)
    assert changes[0] > 0


def test_a_float_batch_on_no_images_and_wrong_arguments() -> None:
    nothing = common_corruption(torch.rand(0, 3, 32, 32), torch.arange(0), "fog", 1)
    assert nothing.shape == (0, 3, 32, 32)
    with pytest.raises(ValueError, match="fogg"):
        corrupted(grey(32, 0.5), "fogg", 1)
    with pytest.raises(ValueError, match="severity is 6"):
        corrupted(grey(32, 0.5), "fog", 6)
    with pytest.raises(ValueError, match="index"):
        common_corruption(grey(32, 0.5), torch.arange(3), "fog", 1)
    with pytest.raises(ValueError, match="4, 4"):
        corrupted(grey(4, 0.5), "fog", 1)


def test_lengths_are_published_at_the_published_sizes_and_in_proportion_elsewhere() -> None:
    assert parameters("motion_blur", 5, 224) == (20, 15)
    assert parameters("motion_blur", 5, 112) == (10, 7.5)
    assert parameters("motion_blur", 5, 32) == (9, 2.5)
    assert parameters("motion_blur", 5, 64) == (18, 5)
    assert parameters("glass_blur", 3, 112) == (0.5, 1, 3)  # passes are no length
    assert parameters("gaussian_noise", 5, 112) == (0.38,)
    assert parameters("gaussian_noise", 5, 84) == (0.10,)
    assert parameters("gaussian_noise", 5, 85) == (0.38,)


# ------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("side", "severity"), [(32, 1), (32, 5), (224, 1), (224, 2)])
def test_gaussian_noise_has_the_published_deviation(side: int, severity: int) -> None:
    published = {(32, 1): 0.04, (32, 5): 0.10, (224, 1): 0.08, (224, 2): 0.12}[side, severity]
    noise = corrupted(grey(side, 0.5, 16 if side == 32 else 1), "gaussian_noise", severity) - 0.5
    assert float(noise.std()) == pytest.approx(published, rel=0.02)
    assert abs(float(noise.mean())) < 0.02 * published


@pytest.mark.parametrize(
    ("side", "severity", "photons"), [(32, 1, 500), (32, 5, 50), (224, 1, 60), (224, 3, 12)]
)
def test_shot_noise_is_poissons(side: int, severity: int, photons: int) -> None:
    counts = corrupted(grey(side, 0.4, 16 if side == 32 else 1), "shot_noise", severity).double() * photons
    assert torch.allclose(counts, counts.round(), atol=1e-3)
    assert float(counts.mean()) == pytest.approx(0.4 * photons, rel=0.02)
    expected = 0.4 * photons  # variance is the mean; what lies above white is cut off at 12 photons
    assert float(counts.var()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("side", "severity", "share"), [(32, 5, 0.07), (224, 1, 0.03), (224, 5, 0.27)])
def test_impulse_noise_turns_the_published_share(side: int, severity: int, share: float) -> None:
    values = corrupted(grey(side, 0.5, 16 if side == 32 else 1), "impulse_noise", severity)
    for extreme in (0, 1):
        found = float((values == extreme).double().mean())
        assert found == pytest.approx(share / 2, abs=5 * math.sqrt(share / 2 / values.numel()))
    assert set(values.unique().tolist()) == {0, 0.5, 1}


# -------------------------------------------------------------------------------------------------- blur


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_kernels_sum_to_one(side: int, severity: int) -> None:
    disc = disc_kernel(*parameters("defocus_blur", severity, side))
    assert float(disc.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(disc, disc.T)
    assert torch.allclose(disc, disc.flip(0))
    trails = trail_kernels(torch.tensor([0.0, 0.7, -0.7]), *parameters("motion_blur", severity, side))
    assert torch.allclose(trails.sum((1, 2)), torch.ones(3), atol=1e-6)
    for border in ("nearest", "symmetric"):
        matrix = gaussian_matrix(side, 2.5 * severity, 4, border)
        assert torch.allclose(matrix.sum(1), torch.ones(side), atol=1e-6)


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", GROUPS["blur"])
def test_blur_leaves_one_colour_alone(name: str, side: int) -> None:
    for severity in (1, 5):
        blurred = corrupted(grey(side, 0.3, 1), name, severity)
        assert torch.allclose(blurred, grey(side, 0.3, 1), atol=1e-5)


def test_a_disc_of_radius_three_has_29_pixels() -> None:
    disc = disc_kernel(3, 0.1)
    assert int((disc > 1e-6).sum()) == 29  # Gauss's circle problem, N(3)
    assert float(disc.max()) == pytest.approx(1 / 29)


def test_a_trail_lies_on_its_line_and_falls_like_half_a_gaussian() -> None:
    flat, steep = trail_kernels(torch.tensor([0.0, math.pi / 2]), 2, 1.5)
    assert flat.shape == (9, 9)
    taps = np.exp(-0.5 * (np.arange(5) / 1.5) ** 2)
    assert np.allclose(flat[4, 4:].numpy(), taps / taps.sum(), atol=1e-6)
    assert np.allclose(steep[4:, 4].numpy(), taps / taps.sum(), atol=1e-6)
    assert float(flat[4, :4].sum() + steep[:4, 4].sum()) == 0


def test_correlation_equals_the_slow_loop() -> None:
    image, kernel = pictures(1, 9), torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(3))
    padded = np.pad(image[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    expected = np.zeros((3, 9, 9))
    for row in range(9):
        for left in range(9):
            window = padded[:, row : row + 5, left : left + 5]
            expected[:, row, left] = (window * kernel[0].numpy()).sum((1, 2))
    assert np.allclose(correlate(image, kernel, "reflect")[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("border", "mode"), [("nearest", "edge"), ("symmetric", "symmetric")])
def test_the_gaussian_matrix_is_a_padded_convolution(border: str, mode: str) -> None:
    line = np.random.default_rng(0).random(12)
    reach = int(4 * 1.3 + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / 1.3) ** 2)
    padded = np.pad(line, reach, mode=mode)  # type: ignore[call-overload]
    expected = np.convolve(padded, taps / taps.sum(), mode="valid")
    assert np.allclose(gaussian_matrix(12, 1.3, 4, border).double().numpy() @ line, expected, atol=1e-6)


def test_glass_displaces_as_the_loop_over_the_pixels_does() -> None:
    side, reach, passes = 20, 2, 3
    image, draws = pictures(1, side), Draws(3, torch.tensor([5]), "glass")
    expected = image[0].numpy().copy()
    for number in range(passes):
        offsets = (draws.uniform(f"pass{number}", 2, side, side)[0] * 2 * reach).long() - reach
        for row in range(side - reach, reach, -1):
            for column in range(side - reach, reach, -1):
                down, right = offsets[:, row, column].tolist()
                expected[:, row, column] = expected[:, row + down, column + right]
    found = glass_blur(image, draws, 1e-3, reach, passes)[0].numpy()
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, image[0].numpy())


def test_zoom_keeps_the_corners_of_the_centre() -> None:
    image = pictures(1, 32)
    assert torch.equal(enlarged(image, 1.0), image)
    doubled = enlarged(image, 2.0)
    assert torch.allclose(doubled[..., 0, 0], image[..., 8, 8])
    assert torch.allclose(doubled[..., 31, 31], image[..., 23, 23])
    between = image[..., 8, 8] + 15 / 31 * (image[..., 8, 9] - image[..., 8, 8])  # 16 pixels on 32
    assert torch.allclose(doubled[..., 0, 1], between, atol=1e-5)


def test_zoom_blur_is_the_mean_of_the_image_and_its_enlargements() -> None:
    image = pictures(1, 32)
    parts = [image, *(enlarged(image, 1 + 0.01 * step) for step in range(12))]
    # To 1.11, and not to 1.10: NumPy's arange, with which the data were published, has one step more.
    assert torch.allclose(corrupted(image, "zoom_blur", 2), torch.stack(parts).mean(0), atol=1e-4)


# ----------------------------------------------------------------------------------------------- weather


def test_plasma_equals_the_loop_over_squares_and_diamonds() -> None:
    side, decay = 8, 1.7
    noise = 2 * torch.rand(1, side, side, generator=torch.Generator().manual_seed(2)) - 1
    given, field = noise[0].double().numpy(), np.zeros((side, side))
    step, strength = side, 1.0
    while step > 1:
        half = step // 2
        for y in range(half, side, step):
            for x in range(half, side, step):
                around = [field[(y + a) % side, (x + b) % side] for a in (-half, half) for b in (-half, half)]
                field[y, x] = np.mean(around) + strength * given[y, x]
        for y in range(0, side, half):
            for x in range((y + half) % step, side, step):
                cross = [(y - half, x), (y + half, x), (y, x - half), (y, x + half)]
                field[y, x] = np.mean([field[a % side, b % side] for a, b in cross]) + strength * given[y, x]
        step, strength = half, strength / decay**2
    expected = (field - field.min()) / (field.max() - field.min())
    assert np.allclose(plasma(noise, decay)[0].numpy(), expected, atol=1e-5)


def test_fog_keeps_the_largest_value_and_lightens_black() -> None:
    foggy = corrupted(grey(32, 0.8), "fog", 5)
    # (0.8 + 1.5 · layer) · 0.8 / 2.3, the layer from 0 to 1
    assert float(foggy.min()) == pytest.approx(0.8 * 0.8 / 2.3, abs=1e-5)
    assert float(foggy.max()) == pytest.approx(0.8, abs=1e-5)


def test_brightness_adds_to_the_value_of_hsv() -> None:
    image = pictures(1, 32)
    image[0, :, 0, 0] = 0  # black has no hue
    found = corrupted(image, "brightness", 3)
    for row, column in ((0, 0), (3, 5), (20, 9), (31, 31)):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[0, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1))
        assert found[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_snow_whitens_as_published_where_no_flake_falls() -> None:
    image = pictures(2, 32)
    snowy = corrupted(image, "snow", 1)
    red, green, blue = image.unbind(1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    whitened = 0.95 * image + 0.05 * torch.maximum(image, 1.5 * luma + 0.5)
    assert bool((snowy >= whitened.clamp(0, 1) - 1e-5).all())
    flakes = (snowy - whitened)[(snowy < 1).expand_as(snowy)]
    assert float((flakes < 1e-4).double().mean()) > 0.2
    assert float(flakes.max()) > 0.05


def test_frost_is_generated_and_weighted() -> None:
    draws = Draws(0, torch.arange(2), "corruption.frost.1")
    ice = frost_pictures(draws, 32, 32)
    assert float(ice.std((2, 3)).mean()) == pytest.approx(0.11, rel=0.1)  # the photographs': 0.06 to 0.17
    assert bool((ice.mean((2, 3)).diff(dim=1) > 0).all())  # bluish
    image = 0.5 * pictures(2, 32)
    assert torch.allclose(corrupted(image, "frost", 1), image + 0.2 * ice, atol=1e-5)


# ----------------------------------------------------------------------------------------------- digital


def test_contrast_is_what_is_left_of_it() -> None:
    image = pictures(2, 32)
    mean = image.double().numpy().mean((2, 3), keepdims=True)
    for severity, kept in zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        expected = mean + kept * (image.double().numpy() - mean)
        assert np.allclose(corrupted(image, "contrast", severity).numpy(), expected, atol=1e-6)


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    ("side", "severity", "quality"), [(32, 1, 80), (32, 5, 40), (224, 1, 25), (224, 5, 7)]
)
def test_jpeg_is_pillows_at_the_published_quality(side: int, severity: int, quality: int) -> None:
    image, file = pictures(1, side), BytesIO()
    to_pillow(image[0]).save(file, "JPEG", quality=quality)
    assert torch.equal(corrupted(image, "jpeg_compression", severity)[0], from_pillow(Image.open(file)))


@pytest.mark.parametrize(
    ("side", "severity", "small"), [(32, 1, 30), (32, 5, 20), (224, 1, 134), (224, 5, 56)]
)
def test_pixelate_is_a_resize_by_boxes(side: int, severity: int, small: int) -> None:
    image = pictures(1, side)
    box = Image.Resampling.BOX
    expected = to_pillow(image[0]).resize((small, small), box).resize((side, side), box)
    assert torch.equal(corrupted(image, "pixelate", severity)[0], from_pillow(expected))


def test_a_fourth_of_the_side_are_blocks_of_one_colour() -> None:
    blocks = corrupted(pictures(1, 224), "pixelate", 5)[0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3)
    assert float((blocks.amax(3) - blocks.amin(3)).max()) == 0


def test_elastic_without_displacements_is_affine() -> None:
    ramp = torch.linspace(0.2, 0.8, 32)
    image = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.full((32, 32), 0.5)])[None]
    moved = corrupted(image, "elastic_transform", 1)[0]  # of CIFAR-10-C: an affine map alone
    middle = moved[:2, 12:20, 12:20]  # far from mirrored borders
    assert torch.allclose(middle.diff(n=2, dim=1), torch.zeros(1), atol=1e-5)
    assert torch.allclose(middle.diff(n=2, dim=2), torch.zeros(1), atol=1e-5)
    assert not torch.allclose(moved[0], image[0, 0], atol=1e-3)


def test_elastic_moves_its_three_points_where_they_were_drawn_to() -> None:
    ramp = torch.arange(32.0) / 100 + 0.3
    image = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.full((32, 32), 0.5)])[None]
    moved = corrupted(image, "elastic_transform", 1)[0]
    jitter = 2.56 * (
        2 * Draws(0, torch.tensor([0]), "corruption.elastic_transform.1").uniform("affine", 3, 2) - 1
    )
    points = torch.tensor([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]]) + jitter[0]
    for (x, y), origin in zip(points.tolist(), ([26, 26], [26, 6], [6, 6]), strict=True):
        left, top = int(x), int(y)
        right, down = x - left, y - top
        for channel in (0, 1):
            four = moved[channel, top : top + 2, left : left + 2]
            value = torch.tensor([1 - down, down]) @ four @ torch.tensor([1 - right, right])
            assert 100 * (float(value) - 0.3) == pytest.approx(origin[channel], abs=1e-2)


# ------------------------------------------------------------------------------------------------- draws


def test_draws_differ_between_streams_uses_images_and_seeds() -> None:
    index = torch.tensor([3, 4])
    given = [(0, "fog.1", "a"), (0, "fog.2", "a"), (0, "fog.1", "b"), (1, "fog.1", "a")]
    for kind in ("normal", "uniform"):
        draws = [getattr(Draws(seed, index, stream), kind)(use, 50) for seed, stream, use in given]
        lines = torch.cat(draws)  # two images each
        assert len({tuple(line.tolist()) for line in lines}) == 8
        assert float((lines.corrcoef() - torch.eye(8)).abs().max()) < 0.5
    counts = [next(Draws(s, index, stream).generators(use)).integers(1 << 60) for s, stream, use in given]
    assert len(set(counts)) == 4
