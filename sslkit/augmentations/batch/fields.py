"""Random Field Augmentations: shifts, turns, scales and colours that differ from place to place, smoothly.

Mansfield, Afkanpour, Morningstar and Singhal, *Random Field Augmentations for Self-Supervised Representation
Learning*, NeurReps workshop 2023, https://arxiv.org/abs/2311.03629

A transformation has one parameter for an image; here it has a field of them, θ_j(p) = s_j g_j(p), where g_j
is a Gaussian random field of zero mean and unit variance whose power falls as |k|^-gamma up to K cycles per
image:

    x'(p) = colours_θ(p)( x( c + R(angle(p)) diag(e^a(p), e^b(p)) (p - c) + t(p) ) )

Two shifts, two logarithms of scales and an angle move the place that is looked at; brightness, contrast
(about the image's mean luma), saturation and hue (a turn of YIQ's chroma) follow, clamped once. What is one
for the whole image is the method's own crop and jitter.

Differs from the official default: neither code nor numbers are public, so the parametrisation and all values
are ours. Too steep a field folds the image over itself; strengths of which more than about one pixel in a
thousand would fold are refused. A method that maps places between views, by boxes, needs geometry off:
translation, angle and scale of 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.augmentations import settings
from sslkit.augmentations.batch.augment import BatchAugment, Moment, pictures
from sslkit.augmentations.color import check_colors, gray
from sslkit.core import rng
from sslkit.core.config.setting import setting
from sslkit.core.errors import UserError
from sslkit.frequency.devices import full_precision
from sslkit.frequency.resampling import field_gradient, random_field

_GEOMETRY = ("translation", "angle", "scale")

STEEPEST = 0.25
"""Root mean square slope of a displacement, up to which hardly anything folds: a shift 1.5e-4 of the pixels.
"""


class Fields(BatchAugment):
    """Random Field Augmentations (2023): its parameters are smooth fields over the image."""

    @dataclass(frozen=True)
    class Config:
        highest: int = setting(4, "highest frequency of the fields, cycles per image (ours)", low=1, high=16)
        gamma: float = setting(2.0, "their power falls as frequency to minus this (ours)", low=0)
        translation: float = settings.share(0.02, "deviation of the shifts, share of the side (ours)")
        angle: float = setting(2.0, "deviation of the turns, degrees (ours)", low=0, high=90)
        scale: float = settings.share(0.04, "deviation of the logarithm of the scales (ours)")
        brightness: float = settings.share(0.25, "deviation of the logarithm of the brightness (ours)")
        contrast: float = settings.share(0.25, "deviation of the logarithm of the contrast (ours)")
        saturation: float = settings.share(0.4, "deviation of the logarithm of the saturation (ours)")
        hue: float = setting(10.0, "deviation of the hue, degrees (ours)", low=0, high=90)
        share: float = settings.share(0.8, "of the images that are changed (ours)")

    def __init__(self, config: Config) -> None:
        self.config = config
        steepness = _steepness(config)
        if steepness > STEEPEST * 1.01:
            problem = "fields.translation, fields.angle and fields.scale fold the images over themselves"
            milder = {name: getattr(config, name) * STEEPEST / steepness for name in _GEOMETRY}
            words = " ".join(f"-s fields.{name}={value:.3g}" for name, value in milder.items())
            raise UserError(problem, f"{words} is as strong as they may be")

    def __call__(self, views: dict[str, Tensor], index: Tensor, clock: Moment) -> dict[str, Tensor]:
        changed = {
            name: self._view(view, index, clock, f"fields.{name}") for name, view in pictures(views).items()
        }
        return {**views, **changed}

    def _view(self, images: Tensor, index: Tensor, clock: Moment, stream: str) -> Tensor:
        config, side = self.config, min(images.shape[2:])
        if 2 * config.highest >= side:
            raise UserError(
                f"fields.highest: {config.highest} cycles are too many for {side} px",
                f"-s fields.highest={max(1, (side - 1) // 2)} at most",
            )
        if len(images) == 0:
            return images
        waves = 2 * config.highest + 1
        result = check_colors(images)
        with full_precision(images.device):
            for use, change, strengths in (
                ("geometry", warped, self._geometry()),
                ("colours", recolored, self._colours()),
            ):
                if any(strengths):
                    shape = (len(strengths), waves, waves)
                    noise = rng.normal(clock.seed, clock.epoch, index, shape, f"{stream}.{use}")
                    fields = random_field(noise, (images.shape[2], images.shape[3]), config.gamma)
                    for field, strength in zip(fields.unbind(1), strengths, strict=True):
                        field.mul_(strength)
                    result = change(result, fields)
        chosen = rng.uniform(clock.seed, clock.epoch, index, f"{stream}.chosen") < config.share
        return torch.where(chosen[:, None, None, None], result.clamp_(0, 1), images)

    def _geometry(self) -> tuple[float, ...]:
        config = self.config
        return (config.translation,) * 2 + (config.scale,) * 2 + (math.radians(config.angle),)

    def _colours(self) -> tuple[float, ...]:
        config = self.config
        return config.brightness, config.contrast, config.saturation, math.radians(config.hue)


def warped(images: Tensor, fields: Tensor) -> Tensor:
    """Images [B, 3, H, W] looked at elsewhere: bilinear, beyond the borders reflected, not clamped.

    fields: [B, 5, H, W]: shifts down and to the right in shares of the sides, logarithms of the scales of
    both axes, the angle in radians.
    """
    height, width = images.shape[2:]
    # Always float32, whatever else is: bfloat16 has 8 bits for a place among hundreds of pixels.
    rows = (torch.arange(height, device=images.device) + 0.5)[:, None] / height - 0.5
    columns = (torch.arange(width, device=images.device) + 0.5) / width - 0.5
    down, right, taller, wider, angle = fields.float().unbind(1)
    y, x = rows * taller.exp(), columns * wider.exp()
    cosine, sine = angle.cos(), angle.sin()
    place = torch.stack([cosine * x - sine * y + right, sine * x + cosine * y + down], -1)  # x first
    return F.grid_sample(images, 2 * place, mode="bilinear", padding_mode="reflection", align_corners=False)


def recolored(images: Tensor, fields: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] with other colours from place to place, not clamped.

    fields: [B, 4, H, W]: logarithms of brightness, contrast and saturation, the turn of the hue in radians.
    """
    brightness, contrast, saturation, hue = fields[:, :, None].unbind(1)  # each [B, 1, H, W]
    images = images * brightness.exp()
    mean = gray(images)[:, :1].mean((2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast.exp())
    images = torch.lerp(gray(images), images, saturation.exp())
    return _hue_turned(images, hue)


def _hue_turned(images: Tensor, angle: Tensor) -> Tensor:
    """The chroma of YIQ turned by an angle [B, 1, H, W]: linear, without HSV's branch at grey.

    With the matrix M to YIQ it is x + M⁻¹((R - 1)(0, I, Q)): two directions in RGB for each of I and Q.
    """
    red, green, blue = images.unbind(1)
    i = (0.596 * red - 0.274 * green - 0.322 * blue)[:, None]
    q = (0.211 * red - 0.523 * green + 0.312 * blue)[:, None]
    cosine, sine = angle.cos() - 1, angle.sin()
    i, q = cosine * i - sine * q, sine * i + cosine * q
    return torch.cat(
        [plane[:, None] + a * i + b * q for plane, (a, b) in zip((red, green, blue), _TO_RGB, strict=True)], 1
    )


_TO_RGB = ((0.956, 0.621), (-0.272, -0.647), (-1.106, 1.703))
"""What I and Q add to red, green and blue."""


def _steepness(config: Fields.Config) -> float:
    """Root mean square gradient of one component of the displacement, over fields and places.

    A turn by θ(p) shifts by θ times the distance from the centre, on average 1 / √12 of the side; so does a
    scale.
    """
    across = (math.radians(config.angle) ** 2 + config.scale**2) / 12
    return field_gradient(config.highest, config.gamma) * math.sqrt(config.translation**2 + across)
