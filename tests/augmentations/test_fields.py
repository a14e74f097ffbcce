"""Random Field Augmentations: fields of the given spectrum, places and colours that follow them."""

from __future__ import annotations

import math
import re

import pytest
import torch
from around import At, made
from torch import Tensor

from sslkit.augmentations.batch.fields import recolored, warped
from sslkit.augmentations.color import adjust_brightness, adjust_contrast, adjust_saturation
from sslkit.core.errors import UserError
from sslkit.frequency import random_field
from sslkit.frequency.resampling import field_gradient

OFF: dict[str, object] = dict.fromkeys(
    ("translation", "angle", "scale", "brightness", "contrast", "saturation", "hue"), 0
) | {"share": 1}


def some_fields(count: int, side: int, highest: int = 4) -> Tensor:
    draw = torch.randn(count, 2 * highest + 1, 2 * highest + 1, generator=torch.Generator().manual_seed(0))
    return random_field(draw, side)


def test_fields_that_are_zero_change_nothing() -> None:
    images = torch.rand(4, 3, 20, 20)
    assert torch.equal(made("fields", **OFF)({"first": images}, torch.arange(4), At())["first"], images)
    assert (warped(images, torch.zeros(4, 5, 20, 20)) - images).abs().max() < 1e-5
    assert (recolored(images, torch.zeros(4, 4, 20, 20)) - images).abs().max() < 1e-6


def test_fields_are_correlated_as_their_spectrum_says() -> None:
    """corr(g(0), g(d)) = Σ P cos(2π ky dy / N) cos(2π kx dx / N) / Σ P."""
    fields = some_fields(4000, 32).double()
    assert fields.var().item() == pytest.approx(1, abs=0.02)
    waves = [(y, x) for y in range(5) for x in range(5) if 0 < y * y + x * x <= 16]
    power = {wave: 1 / (wave[0] ** 2 + wave[1] ** 2) for wave in waves}
    for down, right in ((0, 8), (8, 0), (8, 8), (3, 5)):
        expected = sum(
            share * math.cos(2 * math.pi * y * down / 32) * math.cos(2 * math.pi * x * right / 32)
            for (y, x), share in power.items()
        ) / sum(power.values())
        found = (fields * fields.roll((-down, -right), (1, 2))).mean()
        assert found.item() == pytest.approx(expected, abs=0.03)
    spectrum = torch.fft.rfft2(fields[:50]).abs()
    ky, kx = torch.fft.fftfreq(32, 1 / 32)[:, None], torch.fft.rfftfreq(32, 1 / 32)
    assert spectrum[:, (ky.square() + kx.square()) > 16].max() < 1e-4 * spectrum.max()


def test_fields_of_oblong_images() -> None:
    draw = torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert (random_field(draw, (32, 32)) - random_field(draw, 32)).abs().max() < 1e-12
    oblong = random_field(draw, (16, 32))
    assert oblong.shape == (16, 32)
    assert (oblong - random_field(draw, 32)[::2]).abs().max() < 1e-12


def test_a_quarter_of_the_inverse_slope_hardly_folds() -> None:
    """At K = 4, gamma = 2 and 64 px that is 1.86 px, and 1.5e-4 of the pixels fold; four times more: 30 %."""
    widest = 0.25 / field_gradient(4, 2.0)
    assert 1.8 < widest * 64 < 1.95
    fields = some_fields(1000, 64).double()
    slope = (fields.roll(-1, 2) - fields).square().mean().sqrt()
    assert slope.item() == pytest.approx(field_gradient(4) / 64, rel=0.02)
    pairs = fields.view(500, 2, 64, 64)
    assert folded(64 * widest * pairs) < 3e-4
    assert 0.05 < folded(128 * widest * pairs) < 0.09
    assert 0.25 < folded(256 * widest * pairs) < 0.35


def folded(shift: Tensor) -> float:
    """Share of pixels at which p + shift(p) [B, 2, N, N] turns over: the determinant of its derivative is <=
    0.
    """
    down, right = (shift.roll(-1, 2) - shift, shift.roll(-1, 3) - shift)
    determinant = (1 + down[:, 0]) * (1 + right[:, 1]) - down[:, 1] * right[:, 0]
    return float((determinant <= 0).float().mean())


def test_strengths_that_fold_are_refused_and_the_cure_helps() -> None:
    with pytest.raises(UserError, match="fold") as refused:
        made("fields", translation=0.1, angle=10, scale=0.1)
    assert refused.value.hint is not None
    advised = dict(re.findall(r"-s fields\.(\w+)=(\S+)", refused.value.hint))
    assert len(advised) == 3
    made("fields", **{name: float(value) for name, value in advised.items()})
    with pytest.raises(UserError, match="fold"):
        made("fields", **{name: 1.05 * float(value) for name, value in advised.items()})
    with pytest.raises(UserError, match=r"highest: 4 cycles are too many for 8 px"):
        made("fields")({"first": torch.rand(1, 3, 8, 8)}, torch.arange(1), At())


def test_constant_fields_are_one_transformation_of_the_image() -> None:
    """Shifts, turns, scales by whole pixels; brightness, contrast, saturation as torchvision's, clamped."""
    images = torch.rand(2, 3, 24, 24) * 0.5 + 0.2
    fields = torch.zeros(2, 5, 24, 24)
    fields[:, 0], fields[:, 1] = 3 / 24, -2 / 24
    moved = warped(images, fields)
    assert (moved[:, :, :-3, 2:] - images[:, :, 3:, :-2]).abs().max() < 1e-5
    fields.zero_()[:, 4] = math.pi / 2
    assert (warped(images, fields) - images.rot90(1, (2, 3))).abs().max() < 1e-4
    fields.zero_()[:, 2:4] = math.log(1 / 3)  # the middle third, each pixel for three
    middle = warped(images, fields)[:, :, 1::3, 1::3]
    assert (middle - images[:, :, 8:16, 8:16]).abs().max() < 1e-5
    fields.zero_()[:, 2] = math.log(1 / 3)
    tall = warped(images, fields)[:, :, 1::3]
    assert (tall - images[:, :, 8:16]).abs().max() < 1e-5
    for number, adjusted in enumerate((adjust_brightness, adjust_contrast, adjust_saturation)):
        fields = torch.zeros(2, 4, 24, 24)
        fields[0, number], fields[1, number] = 0.2, -0.3
        factor = torch.tensor([0.2, -0.3]).exp()
        assert (recolored(images, fields).clamp(0, 1) - adjusted(images, factor)).abs().max() < 1e-6


def test_a_hue_field_turns_chroma_and_keeps_luma() -> None:
    images, fields = torch.rand(2, 3, 8, 8), torch.zeros(2, 4, 8, 8)
    fields[:, 3] = 0.7
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    before, after = (
        torch.einsum("ij,bjhw->bihw", to_yiq, one) for one in (images, recolored(images, fields))
    )
    assert (before[:, 0] - after[:, 0]).abs().max() < 2e-3  # the matrices are rounded to three digits
    ratio = torch.complex(after[:, 1], after[:, 2]) / torch.complex(before[:, 1], before[:, 2])
    assert (ratio - complex(math.cos(0.7), math.sin(0.7))).abs().max() < 0.02
    grey = torch.full((2, 3, 8, 8), 0.4)
    assert (recolored(grey, fields) - 0.4).abs().max() < 1e-3


def test_what_constant_images_keep() -> None:
    colours = torch.rand(5, 3, 1, 1) * 0.6 + 0.1
    images = colours.expand(5, 3, 24, 24).contiguous()
    geometry = made("fields", **{**OFF, "translation": 0.02, "angle": 2, "scale": 0.04})
    assert (geometry({"a": images}, torch.arange(5), At())["a"] - images).abs().max() < 1e-6
    light = made("fields", **{**OFF, "brightness": 0.1})({"a": images}, torch.arange(5), At())["a"]
    assert light.flatten(1).std(1).min() > 1e-3
    assert (light / light[:, :1] - images / images[:, :1]).abs().max() < 1e-4


def test_a_share_of_the_images_is_changed_by_fields_of_its_own() -> None:
    images = torch.rand(1, 3, 16, 16).expand(150, 3, 16, 16).contiguous()
    after = made("fields", share=0.5)({"a": images}, torch.arange(150), At())["a"]
    changed = (after - images).abs().amax((1, 2, 3)) > 0
    assert 50 < changed.sum() < 100
    assert (after[changed][1:] - after[changed][:-1]).abs().amax((1, 2, 3)).min() > 0.01
