"""Random photometry of a view, on the device: colour jitter, grayscale, blur, solarisation.

A worker crops and flips single uint8 images (`geometry`); what changes values is done here, to a whole
batch, with draws keyed by image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from sslkit import keyed
from sslkit.augment.colour import apply_, checked, color_jitter, grayscale

_ORDER = ("order0", "order1", "order2", "order3")
_USES = (
    "jitter",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    *_ORDER,
    "grayscale",
    "blur",
    "sigma",
    "solarize",
)
"""What an image's draws are for, at most sixteen; a new one goes to the end, or old runs change."""

_LIMITS = {
    **dict.fromkeys(("brightness", "contrast", "saturation"), math.inf),
    "hue": 0.5,
    **dict.fromkeys(("jitter", "grayscale", "blur", "solarize"), 1.0),
}
"""The largest allowed value of each of Photometry's numbers."""


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Gaussian blur, borders reflected, as torchvision's.

    Args:
        images: float [B, 3, H, W] in [0, 1].
        sigma: [B] > 0, pixels.
        kernel_size: odd, pixels; the Gaussian is cut off there. Less than half of it fits into the images.
    """
    images = checked(images, sigma=sigma)
    radius, side = kernel_size // 2, min(images.shape[2:])
    if kernel_size % 2 == 0 or not 0 <= radius < side:
        raise ValueError(f"kernel_size: an odd number in 1 … {2 * side - 1} expected, got {kernel_size}")
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)  # [B, kernel_size]
    padded = functional.pad(images, (radius, radius, radius, radius), mode="reflect")
    # Rounded weights may sum to a little more than one.
    return _convolve(_convolve(padded, kernel, dim=2), kernel, dim=3).clamp_(0, 1)


def _convolve(images: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Each image with its own symmetric kernel [B, K], along one dimension, which loses K - 1 pixels.

    A sum of shifted images: on a CPU at least as fast as a grouped convolution or a product with banded
    matrices, and neither autocast nor TF32 rounds it.
    """
    radius = kernel.shape[1] // 2
    length = images.shape[dim] - 2 * radius
    weights = kernel[:, :, None, None, None].unbind(1)
    total = images.narrow(dim, radius, length) * weights[radius]
    for distance in range(1, radius + 1):
        one = images.narrow(dim, radius - distance, length)
        other = images.narrow(dim, radius + distance, length)
        total.addcmul_(one + other, weights[radius + distance])
    return total


def solarize(images: Tensor, threshold: float = 0.5) -> Tensor:
    """images [B, 3, H, W] in [0, 1], inverted where a value is at least the threshold."""
    images = checked(images)
    return torch.where(images >= threshold, 1 - images, images)


@dataclass(frozen=True)
class Photometry:
    """Random colour jitter, grayscale, blur and solarisation, in this order, each with a probability.

    The defaults are SimCLR's at strength 1 (Chen et al., ICML 2020, arXiv 2002.05709). BYOL, MoCo v2 and
    DINO do the same with other strengths and with probabilities that differ from view to view. The blur's
    kernel is SimCLR's for all: a tenth of the shorter side, made odd. DINO's and MoCo's official blur is
    Pillow's, which has no such limit.

    Args:
        brightness, contrast, saturation: factors are uniform in [max(0, 1 - value), 1 + value].
        hue: shifts are uniform in [-value, value], turns, at most 0.5.
        jitter, grayscale, blur, solarize: probabilities per image.
        blur_sigma: bounds of a uniform sigma, pixels.

    Raises:
        ValueError: a value outside its range.
    """

    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    jitter: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name}: a number in 0 … {limit:g} expected, got {getattr(self, name)}")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma: 0 < low <= high expected, got {self.blur_sigma}")

    @torch.no_grad()
    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int, stream: str) -> Tensor:
        """float [B, 3, H, W] in [0, 1] → float32 [B, 3, H, W] in [0, 1], a new tensor.

        Args:
            index: int64 [B], the images' positions in the data set. What happens to an image depends on
                its own, on seed, epoch and stream, and on no other image.
            stream: the view's name; views under different names are independent.
        """
        images, draws = checked(images, index=index), _draws(index, seed, epoch, stream)
        view = self._jittered(images, draws) if self.jitter else images.clone()
        if self.grayscale:
            apply_(view, draws["grayscale"] < self.grayscale, grayscale)
        if self.blur:
            blur = partial(gaussian_blur, kernel_size=2 * (min(view.shape[2:]) // 20) + 1)
            apply_(view, draws["blur"] < self.blur, blur, _between(draws["sigma"], *self.blur_sigma))
        if self.solarize:
            apply_(view, draws["solarize"] < self.solarize, solarize)
        return view

    def _jittered(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return color_jitter(
            images,
            brightness=_factor(draws["brightness"], self.brightness),
            contrast=_factor(draws["contrast"], self.contrast),
            saturation=_factor(draws["saturation"], self.saturation),
            hue=_between(draws["hue"], -self.hue, self.hue),
            # The ranks of independent draws are a uniformly random permutation.
            order=torch.stack([draws[name] for name in _ORDER], 1).argsort(stable=True, dim=1),
            chosen=draws["jitter"] < self.jitter,
        )


def _draws(index: Tensor, seed: int, epoch: int, stream: str) -> dict[str, Tensor]:
    """A U[0, 1) draw [B] for each use: sixteen counters per image in one call, not a call per use."""
    counters = 16 * index[:, None] + torch.arange(len(_USES), device=index.device)  # [B, uses]
    draws = keyed.uniform(seed, epoch, counters, f"photometry.{stream}")
    return dict(zip(_USES, draws.unbind(1), strict=True))


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + draw * (high - low)


def _factor(draw: Tensor, strength: float) -> Tensor:
    return _between(draw, max(0.0, 1 - strength), 1 + strength)
