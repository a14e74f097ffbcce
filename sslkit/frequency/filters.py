"""Low-pass, high-pass, and MFM's corruption of a batch: exact, un-shifted, one real transform.

The numbers of F⁻¹(mask · F images) by less work: a real image's spectrum is half redundant (`rfft2`), and
the high-pass is what the low-pass leaves. Low-precision images are computed in float32 and rounded back.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sslkit.frequency.devices import fourier_device, full_precision
from sslkit.frequency.masks import Cutoff, at_least_float32, low_mask
from sslkit.frequency.pruned import pruned_for
from sslkit.frequency.transform import irfft2, rfft2


def low_pass(images: Tensor, radius: Cutoff) -> Tensor:
    """The frequencies below `radius` (bins, strict <), zero frequency included; not clamped.

    images: float [B, C, H, W], any size. radius: a number > 0, radii [B], or a half-plane mask (see
    `masks`). Returns the same shape and dtype.
    """
    return _filter(images, radius).to(images.dtype)


def high_pass(images: Tensor, radius: Cutoff) -> Tensor:
    """`images - low_pass(images, radius)`: zero mean wherever the zero frequency is low; not clamped."""
    return (images - _filter(images, radius)).to(images.dtype)


def apply_mask(images: Tensor, mask: Tensor) -> Tensor:
    """Each frequency of `images` [B, C, H, W] times `mask`, a half-plane [..., H, W // 2 + 1]."""
    if mask.ndim < 2:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected [..., H, W // 2 + 1]")
    return low_pass(images, mask)


def corrupt(
    images: Tensor,
    keep_low: Tensor,
    radius: Cutoff,
    clamp: bool | Literal["official", "none", "half"] = True,
) -> Tensor:
    """MFM's encoder input (Xie et al., ICLR 2023, arXiv 2206.07706): low-pass where `keep_low`, else
    high-pass.

    Args:
        images: float [B, C, H, W] in [0, 1].
        keep_low: bool [B]; True means the input keeps the low frequencies (and the high ones are to be
            predicted).
        clamp: to [0, 1] (True, "official"), as in the official code, where it zeroes the negative half of a
            high-pass image; False or "none", as in the paper's algorithm; "half": after ½ was added to
            high-pass images, whose mean is zero (ours).

    Returns:
        The same shape and dtype.
    """
    check_keep_low(keep_low, images)
    lowers = keep_low[:, None, None, None]
    # ±low + (0 or 1) · images: the sign rides on the few spectrum bins, one pass over the pixels is left.
    kept = _filter(images, radius, sign=torch.where(lowers, 1.0, -1.0)).addcmul_(
        images, (~lowers).to(images.dtype)
    )
    if clamp == "half":
        kept = kept.add_(0.5 * ~lowers)
    return (kept if clamp in (False, "none") else kept.clamp_(0, 1)).to(images.dtype)


def check_images(images: Tensor, name: str = "images") -> None:
    """TypeError or ValueError unless a floating-point [B, C, H, W] with at least one pixel."""
    if not (isinstance(images, Tensor) and images.is_floating_point()):
        raise TypeError(f"{name} is {_kind(images)}, expected a floating-point tensor")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{name} has shape {tuple(images.shape)}, expected [B, C, H, W] with pixels")


def check_keep_low(keep_low: Tensor, images: Tensor) -> None:
    """TypeError or ValueError unless one bool per image."""
    if _kind(keep_low) != torch.bool:
        raise TypeError(f"keep_low is {_kind(keep_low)}, expected torch.bool, one per image")
    if keep_low.shape != images.shape[:1]:
        raise ValueError(
            f"keep_low has shape {tuple(keep_low.shape)}, expected [{len(images)}], one per image"
        )


def _kind(value: object) -> object:
    return value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _filter(images: Tensor, radius: Cutoff, sign: Tensor | float = 1.0) -> Tensor:
    """`sign` times the low frequencies, in the computing precision; a new tensor."""
    check_images(images)
    place = fourier_device(images.device)
    if place != images.device:
        sign = sign.to(place) if isinstance(sign, Tensor) else sign
        return _filter(images.to(place), radius, sign).to(images.device)
    exact = at_least_float32(images)
    mask = low_mask(radius, images)
    with full_precision(images.device):
        pruned = None if isinstance(radius, Tensor) else pruned_for(exact, radius)
        if pruned is None:
            spectrum = rfft2(exact).mul_(mask * sign)
            return irfft2(spectrum, images.shape[-2:])
        return pruned.synthesise(pruned.analyse(exact) * (pruned.restrict(mask) * sign))
