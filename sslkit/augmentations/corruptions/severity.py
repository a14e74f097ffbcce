"""The published strengths of the corruptions: ImageNet-C's for large images, CIFAR-10-C's for small ones.

Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*,
ICLR 2019, arXiv 1903.12261; the numbers are those with which the two data sets were published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

Severities = tuple[tuple[float, ...], ...]
"""A corruption's parameters at severity 1 … 5."""

SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for names in GROUPS.values() for name in names)


def _single(*values: float) -> Severities:
    return tuple((value,) for value in values)


IMAGENET_C: Mapping[str, Severities] = {
    "gaussian_noise": _single(0.08, 0.12, 0.18, 0.26, 0.38),  # deviation
    "shot_noise": _single(60, 25, 12, 5, 3),  # photons at white
    "impulse_noise": _single(0.03, 0.06, 0.09, 0.17, 0.27),  # share of the values
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),  # radius, deviation at its edge
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),  # deviation, reach, passes
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # radius, deviation
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),  # end, step
    "snow": (  # mean, deviation, enlargement, threshold, blur's radius and deviation, the image's weight
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),  # weights of image and frost
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # thickness, decay of the detail
    "brightness": _single(0.1, 0.2, 0.3, 0.4, 0.5),  # added to HSV's value
    "contrast": _single(0.4, 0.3, 0.2, 0.1, 0.05),  # what is left of it
    "elastic_transform": (  # displacement, its smoothness, jitter of the affine map
        (488, 170.8, 24.4),  # multiples of 244, published for images of 224
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
    "pixelate": _single(0.6, 0.5, 0.4, 0.3, 0.25),  # share of the side that is left
    "jpeg_compression": _single(25, 18, 15, 10, 7),  # quality
}
"""For sides of 224 pixels; columns as in CIFAR_10_C."""

CIFAR_10_C: Mapping[str, Severities] = {
    "gaussian_noise": _single(0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": _single(500, 250, 100, 75, 50),
    "impulse_noise": _single(0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": _single(0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": _single(0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": (
        (0, 0, 2.56),
        (1.6, 6.4, 2.24),
        (2.56, 1.92, 1.92),
        (3.2, 1.28, 1.6),
        (3.2, 0.96, 0.96),
    ),
    "pixelate": _single(0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": _single(80, 65, 58, 50, 40),
}
"""For sides of 32 pixels."""

_LENGTHS = {
    "defocus_blur": (0, 1),
    "glass_blur": (0, 1),
    "motion_blur": (0, 1),
    "snow": (2, 4, 5),
    "elastic_transform": (0, 1, 2),
}
"""Which parameters are lengths in pixels."""

_SMALL, _LARGE = 32, 224


def small(side: int) -> bool:
    """Whether a side is nearer to CIFAR's 32 than to ImageNet's 224, by ratio: up to 84 pixels."""
    return side < math.sqrt(_SMALL * _LARGE)


def parameters(name: str, severity: int, side: int) -> tuple[float, ...]:
    """The published parameters for images with this shorter side.

    At 224 and at 32 pixels they are the published numbers. Between and beyond, lengths are in proportion to
    the side (our choice: a blur covers the same part of the picture), everything else is as published.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption is {name!r}, expected one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity!r}, expected 1 to 5")
    table, published = (CIFAR_10_C, _SMALL) if small(side) else (IMAGENET_C, _LARGE)
    lengths = _LENGTHS.get(name, ())
    values = table[name][severity - 1]
    return tuple(v * side / published if place in lengths else v for place, v in enumerate(values))
