"""Random photometry of a view, on the device: colour jitter, grayscale, blur, solarisation.

A worker crops and flips single uint8 images (`crops`); what changes values is done here, to a whole
batch, with draws keyed by image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sslkit.augmentations.color import apply_, check_colors, gray, host_may_ask, jitter_
from sslkit.core import rng
from sslkit.frequency.devices import full_precision

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

_DECIDED = ("jitter", "grayscale", "blur", "solarize")
"""What happens to a share of the images only."""

_LIMITS = {
    **dict.fromkeys(("brightness", "contrast", "saturation"), math.inf),
    "hue": 0.5,
    **dict.fromkeys(_DECIDED, 1.0),
}
"""The largest allowed value of each of Photometry's numbers."""


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Gaussian blur, borders reflected, as torchvision's.

    Args:
        images: float [B, 3, H, W] in [0, 1].
        sigma: [B] > 0, pixels.
        kernel_size: odd, pixels; the Gaussian is cut off there. Less than half of it fits into the images.
    """
    images = check_colors(images, sigma=sigma)
    radius, side = kernel_size // 2, min(images.shape[2:])
    if kernel_size % 2 == 0 or not 0 <= radius < side:
        raise ValueError(f"kernel_size: an odd number in 1 … {2 * side - 1} expected, got {kernel_size}")
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)  # [B, kernel_size]
    if not host_may_ask(images):
        return blur_by_products(images, kernel).clamp_(0, 1)
    padded = functional.pad(images, (radius, radius, radius, radius), mode="reflect")
    # Rounded weights may sum to a little more than one.
    return _convolve(_convolve(padded, kernel, dim=2), kernel, dim=3).clamp_(0, 1)


def blur_by_products(images: Tensor, kernel: Tensor) -> Tensor:
    """images [B, 3, H, W], each convolved with its own symmetric kernel [B, K], borders reflected, by
    products with banded matrices, outside autocast.

    Elsewhere than on a CPU: a GPU reads and writes the images twice, where a sum of shifted ones does it with
    every shift. Products in TF32, for who asks for them, are off by at most an eighth of an 8-bit level.
    """
    batch, channels, height, width = images.shape
    with full_precision(images.device):
        rows = (kernel @ _reflected(height, kernel.shape[1], images.device)).view(batch, height, height)
        columns = (kernel @ _reflected(width, kernel.shape[1], images.device)).view(batch, width, width)
        lines = images.reshape(batch, channels * height, width) @ columns.mT
        blurred = torch.empty_like(images, memory_format=torch.contiguous_format)
        for line, result in zip(lines.view_as(blurred).unbind(1), blurred.unbind(1), strict=True):
            torch.bmm(rows, line, out=result)  # all channels in one product would need `rows` three times
    return blurred


@lru_cache(maxsize=32)
def _reflected(length: int, taps: int, device: torch.device) -> Tensor:
    """float32 [taps, length²]: how often a tap of output pixel i meets pixel j, borders reflected."""
    with torch.inference_mode(False):
        place = torch.arange(length) + (torch.arange(taps) - taps // 2)[:, None]  # [taps, length]
        place = (length - 1 - (length - 1 - place.abs()).abs())[..., None]
        return functional.one_hot(place, length).sum(2).float().flatten(1).to(device)


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
    images = check_colors(images)
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

    def weaker(self, strength: float) -> Photometry:
        """The same with this share of the jitter's strengths, 0 … 1; probabilities stay."""
        if strength == 1:
            return self
        kinds = ("brightness", "contrast", "saturation", "hue")
        return replace(self, **{kind: strength * getattr(self, kind) for kind in kinds})

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int, stream: str) -> Tensor:
        """float [B, 3, H, W] in [0, 1] → float32 [B, 3, H, W] in [0, 1], a new tensor.

        Args:
            index: int64 [B], the images' positions in the data set. What happens to an image depends on
                its own, on seed, epoch and stream, and on no other image.
            stream: the view's name; views under different names are independent.
        """
        return photographed([View(self, images, stream)], index, seed, epoch)[0]

    @property
    def shares(self) -> list[float]:
        """Of images whose draw for each of `_USES` decides whether something happens to them."""
        return [getattr(self, use) if use in _DECIDED else 1.0 for use in _USES]


class View(NamedTuple):
    """One view of a batch, and what is to happen to it."""

    photometry: Photometry
    images: Tensor  # float [B, 3, H, W] in [0, 1]
    stream: str


@torch.no_grad()
def photographed(views: Sequence[View], index: Tensor, seed: int, epoch: int) -> list[Tensor]:
    """`view.photometry(view.images, index, seed, epoch, view.stream)` of each view.

    On the CPU one after the other. Elsewhere a launch takes longer than what it does to a small crop, so
    views of one size that differ in probabilities only are one batch there.
    """
    draws = _draws(index, seed, epoch, [view.stream for view in views])
    groups: dict[object, list[int]] = {}
    for number, view in enumerate(views):
        colours = replace(view.photometry, jitter=0, grayscale=0, blur=0, solarize=0)
        alike = colours, view.images.shape
        groups.setdefault(number if host_may_ask(view.images) else alike, []).append(number)
    results = [view.images for view in views]
    for members in groups.values():
        together = _changed([views[number] for number in members], [draws[number] for number in members])
        for number, images in zip(members, together.chunk(len(members)), strict=True):
            results[number] = images
    return results


def _changed(views: Sequence[View], draws: Sequence[Tensor]) -> Tensor:
    """The images of all these views, one after the other; their draws are [B, uses] each."""
    images = torch.cat([check_colors(view.images) for view in views])
    first, kinds = views[0].photometry, tuple(view.photometry for view in views)
    own = torch.stack(list(draws))  # [views, B, uses]
    chosen = (own < _limits(kinds, own.device)[:, None]).flatten(0, 1)
    own, uses = own.flatten(0, 1), {use: place for place, use in enumerate(_USES)}

    def wanted(use: str) -> bool:
        return any(getattr(kind, use) for kind in kinds)

    if wanted("jitter"):
        # The ranks of independent draws are a uniformly random permutation.
        order = own[:, uses["order0"] : uses["order3"] + 1].argsort(stable=True, dim=1)
        low, span = _bounds(first, own.device)
        parameters = low + own[:, uses["brightness"] : uses["hue"] + 1] * span
        jitter_(images, parameters, order, chosen[:, uses["jitter"]])
    if wanted("grayscale"):
        apply_(images, chosen[:, uses["grayscale"]], gray)
    if wanted("blur"):
        blur = partial(gaussian_blur, kernel_size=2 * (min(images.shape[2:]) // 20) + 1)
        sigma = _between(own[:, uses["sigma"]], *first.blur_sigma)
        apply_(images, chosen[:, uses["blur"]], blur, sigma)
    if wanted("solarize"):
        apply_(images, chosen[:, uses["solarize"]], solarize)
    return images


def _draws(index: Tensor, seed: int, epoch: int, streams: Sequence[str]) -> Tensor:
    """U[0, 1) draws [views, B, uses]: sixteen counters per image in one call, not a call per use."""
    counters = 16 * index[:, None] + torch.arange(len(_USES), device=index.device)  # [B, uses]
    return rng.uniforms(seed, epoch, counters, [f"photometry.{stream}" for stream in streams])


@lru_cache(maxsize=64)
def _limits(kinds: tuple[Photometry, ...], device: torch.device) -> Tensor:
    """The shares of these kinds, [kinds, uses]; made of Python's numbers once, as the host waits for it."""
    with torch.inference_mode(False):
        return torch.tensor([kind.shares for kind in kinds]).to(device)


@lru_cache(maxsize=64)
def _bounds(kind: Photometry, device: torch.device) -> tuple[Tensor, Tensor]:
    """The lowest brightness, contrast, saturation and hue, and how far they reach above it, [4] each."""
    strengths = kind.brightness, kind.contrast, kind.saturation
    bounds = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths] + [(-kind.hue, kind.hue)]
    with torch.inference_mode(False):
        low, span = torch.tensor([[low, high - low] for low, high in bounds]).T.to(device)
        return low, span


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + draw * (high - low)
