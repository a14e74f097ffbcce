"""Photometry against torchvision image by image, its draws against their distributions, images alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional as reference

from sslkit.augmentations import color, photometric
from sslkit.augmentations.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    grayscale,
)
from sslkit.augmentations.crops import RandomResizedCrop, Views, to_tensor_uint8
from sslkit.augmentations.photometric import (
    Photometry,
    View,
    blur_by_products,
    gaussian_blur,
    photographed,
    solarize,
)
from sslkit.core.device import to_device
from sslkit.data.images.picture import Picture

FOLDERS = [Path(__file__).parents[3] / place for place in ("data/clothing224", "shared/data/clothing224")]
OFF = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0}
REFERENCE = [
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
]


def noise(count: int, height: int = 24, width: int = 31) -> Tensor:
    """Random pixels, the last third with few levels: ties between channels, blacks, whites."""
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    images[2 * count // 3 :] = (images[2 * count // 3 :] * 3).round() / 3
    return images


def photographs(count: int) -> Tensor:
    files = [file for folder in FOLDERS for file in sorted(folder.rglob("*.jpg"))[:: 3000 // count]][:count]
    if not files:
        pytest.skip("no photographs: data/clothing224 lies nowhere beside the repository")
    pictures = [Image.open(file).convert("RGB").resize((96, 80)) for file in files]
    return torch.stack([to_tensor_uint8(picture) for picture in pictures]).float() / 255


def per_image(function: Callable[[Tensor, float], Tensor], images: Tensor, values: Tensor) -> Tensor:
    return torch.stack([function(image, value) for image, value in zip(images, values.tolist(), strict=True)])


@pytest.fixture(params=["noise", "photographs"])
def images(request: pytest.FixtureRequest) -> Tensor:
    return noise(12) if request.param == "noise" else photographs(12)


@pytest.mark.parametrize("number", range(3))
def test_factors_are_torchvisions(images: Tensor, number: int) -> None:
    ours = (adjust_brightness, adjust_contrast, adjust_saturation)[number]
    factors = torch.linspace(0, 2.2, len(images))
    expected = per_image(REFERENCE[number], images, factors)
    assert (ours(images, factors) - expected).abs().max() < 1e-6


def test_hue_is_torchvisions(images: Tensor) -> None:
    shifts = torch.linspace(-0.5, 0.5, len(images))
    expected = per_image(reference.adjust_hue, images, shifts)
    assert (adjust_hue(images, shifts) - expected).abs().max() < 5e-6


def test_hue_of_all_corners_and_edges() -> None:
    """All 125 colours of five levels a channel, at thirteen shifts: every tie of two or three channels."""
    levels = torch.linspace(0, 1, 5)
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 5, 25)
    shifts = torch.arange(-6, 7) / 12
    expected = per_image(reference.adjust_hue, colours.expand(13, 3, 5, 25), shifts)
    assert (adjust_hue(colours.expand(13, 3, 5, 25), shifts) - expected).abs().max() < 5e-6


def test_hue_zero_changes_nothing(images: Tensor) -> None:
    assert (adjust_hue(images, torch.zeros(len(images))) - images).abs().max() < 2e-6


@pytest.mark.parametrize("size", [1, 3, 9, 23])
def test_blur_is_torchvisions(images: Tensor, size: int) -> None:
    sigmas = torch.linspace(0.1, 3, len(images))
    expected = per_image(
        lambda image, sigma: reference.gaussian_blur(image, [size] * 2, [sigma] * 2), images, sigmas
    )
    assert (gaussian_blur(images, sigmas, size) - expected).abs().max() < 2e-6


@pytest.mark.parametrize("size", [1, 3, 9, 23])
def test_blur_by_products_is_torchvisions(images: Tensor, size: int) -> None:
    sigmas = torch.linspace(0.1, 3, len(images))
    offsets = torch.arange(size) - size // 2
    kernels = torch.softmax(-0.5 * (offsets / sigmas[:, None]) ** 2, dim=1)
    expected = per_image(
        lambda image, sigma: reference.gaussian_blur(image, [size] * 2, [sigma] * 2), images, sigmas
    )
    assert (blur_by_products(images, kernels) - expected).abs().max() < 2e-6


def test_grayscale_and_solarize_are_torchvisions(images: Tensor) -> None:
    assert (grayscale(images) - reference.rgb_to_grayscale(images, 3)).abs().max() < 1e-6
    for threshold in (0.0, 1 / 3, 0.5, 1.0):
        assert torch.equal(solarize(images, threshold), reference.solarize(images, threshold))


def every_order() -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """An image, its three factors and hue shift for each of the 24 orders; strong enough to clamp."""
    order = torch.tensor(list(itertools.permutations(range(4))))
    generator = torch.Generator().manual_seed(1)
    factors = [0.2 + 1.6 * torch.rand(24, generator=generator) for _ in range(3)]
    return noise(24), factors, torch.rand(24, generator=generator) - 0.5, order


def one_after_the_other() -> Tensor:
    images, factors, hue, order = every_order()
    values = torch.stack([*factors, hue], 1).tolist()
    result = []
    for image, own, steps in zip(images, values, order.tolist(), strict=True):
        for step in steps:
            image = REFERENCE[step](image, own[step])
        result.append(image)
    return torch.stack(result)


def test_jitter_is_torchvisions_in_all_orders() -> None:
    images, (brightness, contrast, saturation), hue, order = every_order()
    ours = color_jitter(images, brightness, contrast, saturation, hue, order)
    assert (ours - one_after_the_other()).abs().max() < 1e-5


def test_jitter_as_a_gpu_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six blends for every image, those of no use with weights that change nothing."""
    images, (brightness, contrast, saturation), hue, order = every_order()
    chosen = torch.arange(24) % 3 > 0
    monkeypatch.setattr(color, "host_may_ask", lambda images: False)
    ours = color_jitter(images, brightness, contrast, saturation, hue, order, chosen)
    assert (ours - one_after_the_other())[chosen].abs().max() < 1e-5
    assert torch.equal(ours[~chosen], images[~chosen])


def several_views(count: int) -> list[View]:
    """Views of two sizes, with probabilities and strengths of four kinds."""
    large, small = noise(count), noise(count, 20, 20)
    weak, blurred = Photometry(0.2, 0.2, 0.1, 0.1, blur=0.1), Photometry(blur=1, solarize=0.5)
    return [
        View(Photometry(solarize=0.2), large, "a"),
        View(weak, large, "b"),
        View(Photometry(), small, "c"),
        View(blurred, large.flip(0), "d"),
        View(Photometry(), small.flip(3), "e"),
        View(Photometry(**OFF), small, "f"),
    ]


def test_views_together_are_the_views_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU takes views of one size and strength as one batch, and blurs by products."""
    index, views = torch.arange(60), several_views(60)
    alone = [view.photometry(view.images, index, 1, 2, view.stream) for view in views]
    on_cpu = photographed(views, index, 1, 2)
    assert all(torch.equal(*pair) for pair in zip(on_cpu, alone, strict=True))
    for module in (color, photometric):
        monkeypatch.setattr(module, "host_may_ask", lambda images: False)
    for ours, expected, view in zip(photographed(views, index, 1, 2), alone, views, strict=True):
        assert (ours - expected).abs().max() < 1e-5 or view.photometry.solarize  # which jumps at a half
        assert ((ours - expected).abs() > 1e-5).float().mean() < 1e-3
    assert all(torch.equal(a.images, b.images) for a, b in zip(views, several_views(60), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_same_and_is_never_waited_for() -> None:
    images, index, view = noise(40), torch.arange(40), Photometry(solarize=0.2)
    expected = view(images, index, 0, 0, "first")
    on_device, index = images.cuda(), index.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = view(on_device, index, 0, 0, "first")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (ours.cpu() - expected).abs().max() < 2 / 255


def test_only_the_chosen_images_change() -> None:
    images, (brightness, contrast, saturation), hue, order = every_order()
    chosen = torch.arange(24) % 3 == 0
    before = images.clone()
    ours = color_jitter(images, brightness, contrast, saturation, hue, order, chosen)
    changed = (ours != images).flatten(1).any(1)
    assert torch.equal(changed, chosen)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("setting", "change"), [("grayscale", grayscale), ("solarize", solarize)], ids=["grayscale", "solarize"]
)
def test_probabilities(setting: str, change: Callable[[Tensor], Tensor]) -> None:
    """A share within five standard deviations of 0.2; the others are untouched, the chosen changed."""
    count = 3000
    images = noise(count, 2, 2)
    view = Photometry(**{**OFF, setting: 0.2})(images, torch.arange(count), 0, 0, "first")
    chosen = (view != images).flatten(1).any(1)
    assert abs(chosen.float().mean() - 0.2) < 5 * (0.16 / count) ** 0.5
    assert torch.equal(view[chosen], change(images[chosen]))


def test_jitter_probability_and_uniform_factors() -> None:
    """Brightness alone makes grey 0.25 the factor: uniform in [0.2, 1.8] for eight images in ten."""
    count = 4000
    view = Photometry(**{**OFF, "jitter": 0.8}, contrast=0, saturation=0, hue=0)
    factor = view(torch.full((count, 3, 1, 1), 0.25), torch.arange(count), 0, 0, "first")[:, 0, 0, 0] / 0.25
    drawn = factor[(factor - 1).abs() > 1e-5]
    assert abs(len(drawn) / count - 0.8) < 5 * (0.16 / count) ** 0.5
    ranks = (drawn.sort().values - 0.2) / 1.6
    assert (ranks - torch.linspace(0, 1, len(drawn))).abs().max() < 1.95 / len(drawn) ** 0.5  # p = 0.001


def test_strong_factors_start_at_zero() -> None:
    view = Photometry(**{**OFF, "jitter": 1.0}, brightness=2, contrast=0, saturation=0, hue=0)
    factor = view(torch.full((2000, 3, 1, 1), 0.25), torch.arange(2000), 0, 0, "first")[:, 0] / 0.25
    assert abs((factor < 0.3).float().mean() - 0.1) < 5 * (0.09 / 2000) ** 0.5  # a quarter with [-1, 3]
    assert 2.98 < factor.max() <= 3


def test_blur_probability_and_uniform_sigma() -> None:
    """With three taps the centre of a bright dot tells sigma: (1 + 2 exp(-1 / 2σ²))⁻²."""
    count = 3000
    dots = torch.zeros(count, 3, 21, 21)
    dots[:, :, 10, 10] = 1
    view = Photometry(**{**OFF, "blur": 0.5}, blur_sigma=(0.5, 2.0))(dots, torch.arange(count), 0, 0, "first")
    centre = view[:, 0, 10, 10].double()
    blurred = centre < 1
    assert abs(blurred.float().mean() - 0.5) < 5 * 0.5 / count**0.5
    sigma = (-0.5 / ((centre[blurred] ** -0.5 - 1) / 2).log()).sqrt().sort().values
    ranks = (sigma - 0.5) / 1.5
    assert (ranks - torch.linspace(0, 1, len(sigma))).abs().max() < 1.95 / len(sigma) ** 0.5


def test_all_orders_are_equally_likely() -> None:
    """Chi-square over the 24 orders that `Photometry` asks for, from its own draws."""
    count = 6000
    seen: list[Tensor] = []

    def record(images: Tensor, parameters: Tensor, order: Tensor, chosen: Tensor) -> None:
        seen.append(order)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslkit.augmentations.photometric.jitter_", record)
        Photometry()(torch.rand(count, 3, 1, 1), torch.arange(count), 0, 0, "first")
    orders = (seen[0] * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(orders) == 24
    assert ((orders - count / 24) ** 2 / (count / 24)).sum() < 49.7  # 23 degrees of freedom, p = 0.001


def test_an_image_alone_is_the_image_in_its_batch() -> None:
    images, index, view = noise(40), torch.arange(100, 140), Photometry(solarize=0.2)
    together = view(images, index, 3, 1, "first")
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(view(images[shuffled], index[shuffled], 3, 1, "first"), together[shuffled])
    for i in range(40):
        assert torch.equal(view(images[i : i + 1], index[i : i + 1], 3, 1, "first"), together[i : i + 1])


def test_repeats_are_equal_and_seed_epoch_and_stream_matter() -> None:
    images, index, view = noise(12), torch.arange(12), Photometry()
    once = view(images, index, 0, 0, "first")
    assert torch.equal(view(images, index, 0, 0, "first"), once)
    for other in ((1, 0, "first"), (0, 1, "first"), (0, 0, "second")):
        assert not torch.equal(view(images, index, *other), once)


def test_the_order_is_jitter_grayscale_blur_solarize() -> None:
    images = noise(6)
    settings = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "blur_sigma": (1.0, 1.0)}
    view = Photometry(**settings, jitter=1, grayscale=1, blur=1, solarize=1)
    expected = solarize(gaussian_blur(grayscale(images), torch.ones(6), 3))
    assert (view(images, torch.arange(6), 0, 0, "first") - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("side", "kernel"), [(32, 3), (96, 9), (224, 23)])
def test_the_blur_reaches_a_tenth_of_the_side(side: int, kernel: int) -> None:
    """SimCLR's kernel: 3, 9, 23 pixels at 32, 96, 224."""
    dot = torch.zeros(1, 3, side, side)
    dot[:, :, side // 2, side // 2] = 1
    view = Photometry(**{**OFF, "blur": 1.0}, blur_sigma=(9.0, 9.0))(dot, torch.arange(1), 0, 0, "first")
    assert (view[0, 0] > 0).sum() == kernel**2


def test_everything_is_float32_under_autocast() -> None:
    images, index, view = noise(24), torch.arange(24), Photometry(solarize=0.2)
    expected = view(images, index, 0, 0, "first")
    with torch.autocast("cpu", torch.bfloat16):
        ours = view(images, index, 0, 0, "first")
        half = view(images.bfloat16(), index, 0, 0, "first")
    assert torch.equal(ours, expected)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.5, 1.0])
def test_constant_images_stay_grey_and_finite(value: float) -> None:
    images = torch.full((60, 3, 20, 20), value)
    view = Photometry(solarize=0.5)(images, torch.arange(60), 0, 0, "first")
    assert view.isfinite().all()
    assert view.min() >= 0
    assert view.max() <= 1
    assert (view.amax((1, 2, 3)) - view.amin((1, 2, 3))).max() < 2e-6


def test_the_range_holds() -> None:
    view = Photometry(brightness=3, contrast=3, saturation=3, hue=0.5, solarize=0.5)
    images = view(noise(200), torch.arange(200), 0, 0, "first")
    assert images.min() >= 0
    assert images.max() <= 1


def test_an_empty_batch_stays_empty() -> None:
    view = Photometry(solarize=0.2)
    assert view(torch.rand(0, 3, 8, 9), torch.arange(0), 0, 0, "first").shape == (0, 3, 8, 9)


def test_wrong_tensors_are_refused() -> None:
    images, ones = noise(4), torch.ones(4)
    with pytest.raises(TypeError, match="uint8"):
        adjust_hue((images * 255).byte(), ones)
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        grayscale(images[:, :1])
    with pytest.raises(ValueError, match=r"factor has shape \(3,\)"):
        adjust_contrast(images, ones[:3])
    with pytest.raises(ValueError, match="order"):
        color_jitter(images, ones, ones, ones, ones * 0, torch.arange(4))
    for size in (2, 0, -1, 49):
        with pytest.raises(ValueError, match="kernel_size"):
            gaussian_blur(images, ones, size)


@pytest.mark.parametrize(
    "setting",
    [{"jitter": 1.1}, {"blur": -0.1}, {"hue": 0.6}, {"contrast": -1.0}, {"solarize": float("nan")}],
)
def test_wrong_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Photometry(**setting)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0)])
def test_wrong_sigmas_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="blur_sigma"):
        Photometry(blur_sigma=bounds)


def test_boxes_lead_back_to_the_pixels() -> None:
    """Multi-crop with boxes: cutting the recorded box out of the image gives the view, to the device too."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    crops = {f"local{i}": RandomResizedCrop(12, (0.05, 0.4), box=True) for i in range(6)}
    transform = Views(whole=RandomResizedCrop(24), **crops)
    batch = default_collate([transform(Picture(image), np.random.default_rng(seed)) for seed in range(3)])
    assert set(batch) == {"whole", *crops, *(f"{name}_box" for name in crops)}
    moved = to_device(batch, torch.device("cpu"))
    for name in crops:
        for view, box in zip(batch[name], moved[f"{name}_box"], strict=True):
            left, top, width, height = (box[:4] * torch.tensor([80, 60, 80, 60])).round().int().tolist()
            cut = reference.crop(image, top, left, height, width).resize((12, 12), Image.Resampling.BICUBIC)
            plain = view.flip(-1) if box[4] else view
            assert (plain.int() - to_tensor_uint8(cut).int()).abs().max() <= 2
    assert 0 < sum(moved[f"{name}_box"][:, 4].sum() for name in crops) < 18
