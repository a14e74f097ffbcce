"""Brightness, contrast, saturation and hue of a batch of images, each with its own parameters.

The numbers are torchvision's (`torchvision.transforms.v2.functional` on float images), with one parameter
per image where torchvision has one per call. Nothing waits for a GPU; on the CPU, an operation meant for
some images touches only those, a cache-full at a time. All results are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from sslkit.frequency.filters import check_images

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The operations' numbers in an order of `color_jitter`, as in torchvision's ColorJitter."""

_RED, _GREEN, _BLUE = 0.2989, 0.587, 0.114  # luma as torchvision and the official TensorFlow codes round it
_CACHE_PIXELS = 1 << 16  # a dozen planes of so many pixels stay in a core's caches


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """images [B, 3, H, W] in [0, 1] times factor [B] >= 0, clamped to [0, 1]."""
    return _blend(check_colors(images, factor=factor), _brightness(factor))


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """images [B, 3, H, W] away from their mean luma (factor [B] > 1) or towards it (0 <= factor < 1)."""
    return _blend(check_colors(images, factor=factor), _contrast(factor))


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """images [B, 3, H, W] away from their grey version (factor [B] > 1) or towards it (0 <= factor < 1)."""
    return _blend(check_colors(images, factor=factor), _saturation(factor))


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """images [B, 3, H, W] in [0, 1] with HSV's hue turned by shift [B], turns in [-0.5, 0.5]."""
    return _turn_hue(check_colors(images, shift=shift), shift).clamp_(0, 1)


def grayscale(images: Tensor) -> Tensor:
    """The luma of images [B, 3, H, W], in all three channels."""
    return gray(check_colors(images)).contiguous()


def gray(images: Tensor) -> Tensor:
    """`grayscale` of float32 images, whose three channels are one in memory."""
    return _luma(images).expand_as(images)


def color_jitter(
    images: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    hue: Tensor,
    order: Tensor,
    chosen: Tensor | None = None,
) -> Tensor:
    """The four operations, in an order of each image's own.

    Three of them are one, `_blend`, with weights per image; only the hue needs a place of its own. So three
    blends before the hue and three after it hold all 24 orders, with weights that change nothing where an
    image has no blend. A CPU leaves those out.

    Args:
        images: float [B, 3, H, W] in [0, 1].
        brightness, contrast, saturation: factors [B] >= 0.
        hue: shift [B], turns in [-0.5, 0.5].
        order: int64 [B, 4], per image a permutation of BRIGHTNESS, CONTRAST, SATURATION, HUE.
        chosen: bool [B]; the other images stay as they are. None is all.
    """
    parameters = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    result = check_colors(images, **parameters).clone()
    if order.shape != (len(images), 4):
        raise ValueError(f"order has shape {tuple(order.shape)}, expected [{len(images)}, 4]")
    chosen = torch.ones_like(hue, dtype=torch.bool) if chosen is None else chosen
    jitter_(result, torch.stack([brightness, contrast, saturation, hue], 1), order, chosen)
    return result


def jitter_(images: Tensor, parameters: Tensor, order: Tensor, chosen: Tensor) -> None:
    """`color_jitter` of float32 images in place; parameters [B, 4]: the three factors and the hue's shift."""
    base, slope = _blend_weights(images.device)
    table = base + parameters[:, :, None] * slope  # [B, operation, 3]
    weights = table.take_along_dim(order[:, :, None], 1)  # [B, round, 3]
    place, hue = order.argmax(1), parameters[:, HUE]  # of the hue, the greatest number
    if host_may_ask(images):
        for split in range(4):
            before, after = weights[:, :split], weights[:, split + 1 :]
            apply_(images, chosen & (place == split), _blend_and_turn, before, hue, after)
    else:
        before, after = _split_at(place, weights, base[HUE])
        apply_(images, chosen, _blend_and_turn, before, hue, after)


@lru_cache(maxsize=16)
def _blend_weights(device: torch.device) -> tuple[Tensor, Tensor]:
    """What an operation's `_blend` weights are: the first [4, 3] plus its parameter times the second [4, 3].

    The hue's change nothing.
    """
    with torch.inference_mode(False):
        zero, one = torch.zeros(1), torch.ones(1)
        base = torch.cat([_brightness(zero), _contrast(zero), _saturation(zero), _brightness(one)])
        most = torch.cat([_brightness(one), _contrast(one), _saturation(one), _brightness(one)])
        return base.to(device), (most - base).to(device)


def _split_at(place: Tensor, weights: Tensor, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [B, 4, 3] of the rounds before place [B], and after it, each [B, 3, 3]; else nothing, [3]."""
    rounds, place = torch.arange(4, device=place.device)[:, None], place[:, None, None]
    before = torch.where(rounds < place, weights, nothing)[:, :-1]
    after = torch.where(rounds > place, weights, nothing)[:, 1:]
    return before, after


def _blend_and_turn(images: Tensor, before: Tensor, hue: Tensor, after: Tensor) -> Tensor:
    """Blends with the weights `before` [B, rounds, 3], the hue's turn, blends with those `after`."""
    for weights in before.unbind(1):
        images = _blend(images, weights)
    images = _turn_hue(images, hue)
    if after.shape[1] == 0 or host_may_ask(images):  # elsewhere a blend follows, and it clamps
        images.clamp_(0, 1)
    for weights in after.unbind(1):
        images = _blend(images, weights)
    return images


def _blend(images: Tensor, weights: Tensor) -> Tensor:
    """The sum of an image, its luma and its mean luma with the weights [B, 3], clamped to [0, 1]."""
    own, grey, level = weights[:, :, None, None, None].unbind(1)
    if not host_may_ask(images):  # a pass over the pixels less, and one rounding
        red, green, blue = images.chunk(3, dim=1)
        reds = torch.add(red, green, alpha=_GREEN / _RED).add_(blue, alpha=_BLUE / _RED)  # luma / _RED
        level, grey = reds.mean((2, 3), keepdim=True) * (level * _RED), grey * _RED
        return torch.addcmul(torch.addcmul(level, reds, grey), images, own).clamp_(0, 1)
    luma = _luma(images)
    mean = luma.mean((2, 3), keepdim=True)
    return torch.addcmul(luma.mul_(grey).add_(mean * level), images, own).clamp_(0, 1)


def _brightness(factor: Tensor) -> Tensor:
    return torch.stack([factor, torch.zeros_like(factor), torch.zeros_like(factor)], 1)


def _contrast(factor: Tensor) -> Tensor:
    return torch.stack([factor, torch.zeros_like(factor), 1 - factor], 1)


def _saturation(factor: Tensor) -> Tensor:
    return torch.stack([factor, 1 - factor, torch.zeros_like(factor)], 1)


def _luma(images: Tensor) -> Tensor:
    """[B, 1, H, W]"""
    red, green, blue = images.chunk(3, dim=1)
    return (red * _RED).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE)


def _turn_hue(images: Tensor, shift: Tensor) -> Tensor:
    """From RGB to RGB, which rounding may leave by little: the extremes say what HSV would, and no pixel asks
    which of its channels is largest.

    With channels scaled so that the extremes are 0 and 1, the hue is 1 + green + blue - red sixths of a turn
    away from red, towards green where green > blue. Back again, a channel is 1 within a sixth of a turn of
    its own hue, 0 beyond a third, and linear in between.
    """
    red, green, blue = images.chunk(3, dim=1)  # [B, 1, H, W]
    highest = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = highest - lowest
    sixths = (green + blue).sub_(red).sub_(lowest).add_(chroma)  # times chroma, as yet
    turns = sixths.div_((6 * chroma).clamp_min_(1e-12)).copysign_(green - blue)
    turns.add_(shift[:, None, None, None])
    # Fractions of positive numbers, which are 0.5 at the channel's own hue.
    own = 2.5 - torch.arange(3, device=images.device)[:, None, None] / 3
    distance = (turns + own).frac_().sub_(0.5).abs_().clamp_(1 / 6, 1 / 3)  # [B, 3, H, W], turns
    return torch.addcmul(highest + chroma, chroma, distance, value=-6)


def apply_(images: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """images[chosen] = operation(images[chosen], parameters[chosen], …), without waiting for a GPU.

    There, the operation is done to all: how many are chosen is not known to the host.
    """
    if not host_may_ask(images):
        torch.where(chosen[:, None, None, None], operation(images, *parameters), images, out=images)
        return
    indices = chosen.nonzero()[:, 0]
    step = max(1, _CACHE_PIXELS // images.shape[2:].numel())
    for first in range(0, len(indices), step):
        part = indices[first : first + step]
        own = [values.index_select(0, part) for values in parameters]
        images.index_copy_(0, part, operation(images.index_select(0, part), *own))


def host_may_ask(images: Tensor) -> bool:
    """Whether the values of tensors beside these images are known without waiting for a device."""
    return images.device.type == "cpu"


def check_colors(images: Tensor, **parameters: Tensor) -> Tensor:
    """The images as float32; TypeError or ValueError unless float [B, 3, H, W], with parameters [B]."""
    check_images(images)
    if images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}, expected [B, 3, H, W]")
    for name, values in parameters.items():
        if values.shape != images.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, expected [{len(images)}], one per image"
            )
    return images.float()
